"""Reads the meter catalogue from the file the settings name, or the packaged default.

Called once at the start of a flush; the parsed value is handed to every stage.
"""

from __future__ import annotations

from importlib import resources

from billing_pipeline.domain.catalogue import Catalogue, parse_catalogue
from billing_pipeline.errors import CatalogueError
from billing_pipeline.settings import Settings


def load_catalogue(settings: Settings) -> Catalogue:
    """The catalogue of `BILLING_METERS_FILE`.  Raises `CatalogueError` naming the file and every fault."""
    path = settings.billing_meters_file
    if path is None:
        packaged = resources.files("billing_pipeline.usage") / "default_meters.toml"
        return parse_catalogue(packaged.read_text(encoding="utf-8"), origin="the packaged default_meters.toml")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise CatalogueError(
            f"The meter catalogue {path} cannot be read: {reason}. Check BILLING_METERS_FILE."
        ) from None
    return parse_catalogue(text, origin=str(path))
