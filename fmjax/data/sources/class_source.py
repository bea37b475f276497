"""The base class of sources of records with labels: which classes there are."""

import abc
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from fmjax.data.sources.classes import Classes, find_classes
from fmjax.data.sources.record_formats.formats import RecordOptions, read_records
from fmjax.data.sources.record_formats.record_label import Labels, RecordLabel
from fmjax.data.sources.record_source import RecordSource


@dataclasses.dataclass(frozen=True)
class ClassSource(RecordSource):
    """Records with labels, or without.

    A subclass has the field `classes`, and its last part is the label if there is one.
    """

    @abc.abstractmethod
    def _label(self) -> RecordLabel | None:
        """The label of a record; None if records have none."""

    def class_names(self) -> tuple[str, ...]:
        """Names of the classes 0, 1, …; empty without labels."""
        return () if self._classes is None else self._classes.names

    @functools.cached_property
    def _classes(self) -> Classes | None:
        label = self._label()
        if label is None:
            return None
        files, _ = self._files("train")
        self._check(files)
        binding, field = f"{self.gin_name}.classes", label.fields[0].name
        return find_classes(binding, self.classes, files, field, self._labels_of)

    def _labels_of(self, file: Path) -> Iterator[Labels]:
        options = RecordOptions((self._label(),), self._csv, self._form)
        for record in read_records(file, options):
            if not record.fault:
                yield record.values[0]

    def _settings(self) -> tuple:
        known = (*super()._settings(), self.class_names())
        # Earlier versions took integers for names in files that declare classes.
        is_declared = self._classes is not None and self._classes.are_declared
        return (*known, "declared") if is_declared else known

    def _checked(self, values: tuple) -> tuple:
        if self._classes is None:
            return values
        return (*values[:-1], self._classes.numbers(values[-1]))
