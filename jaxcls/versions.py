"""Are the versions of Python and of the packages those that jaxcls is made for? Imports none of them."""

import importlib.metadata
import platform

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from jaxcls import __version__
from jaxcls.errors import RunError


def python_version() -> str:
    """Python's version, and which would do."""
    wanted = importlib.metadata.metadata("jaxcls")["Requires-Python"]
    if platform.python_version() not in SpecifierSet(wanted):
        raise RunError(f"{platform.python_version()}; {wanted} is needed")
    return f"{platform.python_version()} (supported: {wanted})"


def package_versions() -> str:
    """The versions of what jaxcls needs, each with the range that would do."""
    found = [f"jaxlib {importlib.metadata.version('jaxlib')}"]
    for line in importlib.metadata.requires("jaxcls") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            raise RunError(f"{requirement.name} is missing: pip install '{requirement}'") from None
        if not requirement.specifier.contains(version, prereleases=True):
            raise RunError(f"{requirement.name} {version} is installed: pip install '{requirement}'")
        found.append(f"{requirement.name} {version} ({requirement.specifier})")
    return ", ".join(found)


def installed() -> dict[str, str]:
    """The versions that a result depends on, by name."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"jaxcls": __version__, "python": platform.python_version()} | versions
