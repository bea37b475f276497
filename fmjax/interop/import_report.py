"""What an import tells: which model it was, and what was done to its files."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What was imported.

    Attributes:
      model_type: of config.json.
      architecture: name of transformers' class.
      left_out: tensors that were not imported, of heads that the class does not have.
      notes: what was done to make config.json and files agree.
    """

    model_type: str
    architecture: str
    left_out: list[str]
    notes: list[str]

    @property
    def lines(self) -> list[str]:
        """Lines for a terminal."""
        lines = [f"model_type {self.model_type}, {self.architecture}", *self.notes]
        if self.left_out:
            heads = ", ".join(self.left_out)
            lines.append(f"not imported (weights of other heads): {heads}")
        return lines
