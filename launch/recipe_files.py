"""Recipes from files, and the routes that pools imply. Imports no torch.

`recipe.base` in a configuration names a recipe of `launch/recipes/` or a file of one's own, of the same form: `families`, and perhaps
a `base` again. What stands nearer to the configuration is laid over what it is based on, key by key:

    a number as a term      changes its weight and leaves the rest of the term as it was
    null                    takes the family, term or cost out
    a route                 replaces the route

A family without a route visits the generator (a searcher, where its reward is that of a deliberation), the pools that run the
verifiers it needs, the reference, the learner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from safeladder.launch.sections import Config, Family

GENERATOR, SEARCHER, REFERENCE, LEARNER = (
    f"safeladder.actors.{module}"
    for module in ("generator:Generator", "searcher:Searcher", "reference:Reference", "learner:Learner")
)
DELIBERATION: Final = "deliberation"  # the term that only a searcher's trajectories can earn
_SUFFIX: Final = ".yaml"

Layer = dict[str, Any]


class RecipeFileError(ValueError):
    """A base that cannot be laid under a recipe: says which and why."""


def shipped() -> list[str]:
    """The names of the recipes that come with the package."""
    folder = resources.files("safeladder.launch.recipes")
    return sorted(file.name.removesuffix(_SUFFIX) for file in folder.iterdir() if file.name.endswith(_SUFFIX))


def locate(base: str) -> Traversable:
    """The file of a shipped recipe's name, or of a path. Raises RecipeFileError."""
    if base in shipped():
        return resources.files("safeladder.launch.recipes").joinpath(base + _SUFFIX)
    path = Path(base).expanduser()
    if not path.is_file():
        raise RecipeFileError(f"there is no recipe {base!r}: neither a file nor one of {', '.join(shipped())}")
    return path


def resolve(recipe: Mapping[str, Any], read: Callable[[str], Layer]) -> Layer:
    """The recipe with all that it is based on laid under it, without `base`.

    read: the recipe of a base's name, keys checked. Raises RecipeFileError for a base that is based on itself or is no name, and for
    a null that takes out what is not there.
    """
    layers, names = [dict(recipe)], ["recipe"]
    while (base := layers[-1].get("base")) is not None:
        if not isinstance(base, str):
            raise RecipeFileError(f"{names[-1]}: base must be a name or a path, not {base!r}")
        if base in names:
            raise RecipeFileError(f"{base!r} is based on itself: {' -> '.join([*names[1:], base])}")
        layers.append(read(base))
        names.append(base)
    families: Layer = {}
    for layer, name in zip(reversed(layers), reversed(names), strict=True):
        over = spelled_out(layer.get("families") or {})
        families = laid_over(families, over, f"{name}.families" if name == "recipe" else f"{name}: families")
    return {"families": families}


def spelled_out(families: Any) -> Any:
    """`safety: 1.0` as a term is short for `safety: {weight: 1.0}`. What is no map stays, to be refused by its type."""
    if not isinstance(families, Mapping):
        return families
    return {label: _with_terms(family) for label, family in families.items()}


def _with_terms(family: Any) -> Any:
    if not isinstance(family, Mapping) or not isinstance(family.get("terms"), Mapping):
        return family
    terms = {
        name: {"weight": term} if isinstance(term, int | float) and not isinstance(term, bool) else term
        for name, term in family["terms"].items()
    }
    return {**family, "terms": terms}


def laid_over(under: Mapping[str, Any], over: Any, place: str) -> Any:
    """Maps key by key, as the module says; `place` names the upper one in errors. Raises RecipeFileError."""
    if not isinstance(over, Mapping):
        raise RecipeFileError(f"{place} must be a map, not {over!r}")
    result = dict(under)
    for key, value in over.items():
        here = f"{place}.{key}"
        if value is None:
            if key not in under:
                raise RecipeFileError(f"{here} is null, which takes something out, but there is nothing of that name")
            del result[key]
        elif isinstance(value, Mapping):
            below = under.get(key)
            result[key] = laid_over(below if isinstance(below, Mapping) else {}, value, here)
        else:
            result[key] = value
    return result


def implied_route(config: Config, family: Family) -> list[str]:
    """Generator (or searcher, for a family with the term `deliberation`), verifier pools, reference if asked for, learner.

    Verifier pools are those that run a verifier the family needs, in the pools' order.
    Of several pools that run the same verifier the first counts. Empty where there is no first or no last of these.
    """
    queue = {
        kind: next((pool.queues[0] for pool in config.pools.values() if pool.actor == kind and pool.replicas), None)
        for kind in (GENERATOR, SEARCHER, REFERENCE, LEARNER)
    }
    first, reference, last = queue[GENERATOR], queue[REFERENCE], queue[LEARNER]
    if DELIBERATION in family.terms:
        first = queue[SEARCHER]
    if first is None or last is None:
        return []
    route = [first]
    missing = {*family.terms, *(cost.verifier for cost in family.costs.values())}
    for pool in config.pools.values():
        run = missing & set(pool.options.get("verifiers") or {})
        if run and pool.replicas:
            route.append(pool.queues[0])
            missing -= run
    if reference is not None and config.learner.reference_kl > 0:
        route.append(reference)
    return [*route, last]
