"""Which parameters a run takes from another: `experiment.init_from`."""

import dataclasses

from fmjax.configurable import configurable, path
from fmjax.errors import UserError, require
from fmjax.models.parameter_paths import Pattern

BINDING = "init_from.parameters"
_WITHOUT = "init_from.without"


@configurable("init_from")
@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Initial parameters from another run, which may be of another model.

    They are read at step 0 only; a run that resumes reads its own checkpoints. Averaged
    parameters are used where the other run kept them. Scanned layers are converted to
    unrolled ones and the reverse. Tables of a vocabulary require the same tokenizer.
    Learned positions of patches are interpolated if the size of the images differs. A
    run of adapters gives its base and its adapters, which experiment.peft trains on.

    Attributes:
      run: its directory, trained or imported.
      parameters: patterns of the parameters to read, see
        `fmjax.models.parameter_paths`, each with where they go:
        'stack/** -> encoder_stack/**'. Wildcards stand for the same text on both sides;
        without an arrow, paths are the same. Every parameter that one side matches must
        have its counterpart on the other.
      without: patterns of parameters that are left out on both sides, such as those of
        a new head, ('classifier/**',), which keep their initial values. Each must match
        on one side.
      step: of the checkpoint; None for the newest.
      collection: the collection of this run's variables that they go to: "params", the
        trained parameters, or another that its objective reads, such as "teacher".
        Paths on the right of an arrow are within it.
    """

    run: str = path(runtime=False)
    parameters: tuple[str, ...] = ("**",)
    without: tuple[str, ...] = ()
    step: int | None = None
    collection: str = "params"

    def __post_init__(self):
        """Raises UserError for malformed patterns."""
        require(self, "parameters", bool(self.parameters), "one pattern or more")
        for text in self.parameters:
            source, target = patterns(text)
            if source.wildcards != target.wildcards:
                raise UserError(
                    f"{BINDING}: {text!r} has {source.wildcards or 'no wildcards'} on "
                    f"one side, {target.wildcards or 'none'} on the other; expected "
                    "the same, in the same order."
                )
        self.left_out()

    def left_out(self) -> list[Pattern]:
        """The patterns of `without`; raises UserError if one is malformed."""
        return [Pattern(text, _WITHOUT) for text in self.without]


def patterns(text: str) -> tuple[Pattern, Pattern]:
    """The patterns of both sides of an arrow; the same twice without one."""
    source, arrow, target = (side.strip() for side in text.partition("->"))
    return Pattern(source, BINDING), Pattern(target if arrow else source, BINDING)
