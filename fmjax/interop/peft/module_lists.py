"""Lists of adapter_config.json: names that stand for modules, as peft reads them."""

from collections.abc import Collection, Iterable


def shortened(modules: Collection[str], every: Collection[str]) -> list[str]:
    """Ends of names that stand for modules and for no others, for target_modules.

    Args:
      modules: names of the modules.
      every: names of all modules of the model.
    """
    found: set[str] = set()
    for module in modules:
        parts = module.split(".")
        for i in reversed(range(len(parts))):
            end = ".".join(parts[i:])
            same = {m for m in every if m == end or m.endswith(f".{end}")}
            if same <= {*modules}:
                found.add(end)
                break
        else:
            found.add(module)
    return sorted(found)


def saved_modules(
    names: Iterable[str], every: Collection[str]
) -> tuple[list[str], set[str]]:
    """Names for modules_to_save, and all modules that peft saves by them.

    peft saves each module whose name ends so, with all modules in it.

    Args:
      names: of modules to save, without doubles; those that no module has are left out.
      every: names of all modules of the model.
    """
    listed: list[str] = []
    kept: set[str] = set()
    for name in names:
        if name in kept:
            continue
        own = {
            module
            for module in every
            for parts in [module.split(".")]
            if any(".".join(parts[:i]).endswith(name) for i in range(1, len(parts) + 1))
        }
        if own:
            listed.append(name)
            kept |= own
    return listed, kept
