"""How long the bodies of each route may be, and how long they may take."""

from service.middleware import Bound, Bounds
from service.routes import files, transfers
from service.settings import Settings
from service.uploads import PART_BYTES


def body_bounds(settings: Settings) -> Bounds:
    """The bounds of all routes, as the settings say."""
    form = Bound(settings.max_file_bytes + files.FORM_BYTES, "max_file_bytes")
    return Bounds(
        Bound(settings.max_body_bytes, "max_body_bytes"),
        {
            transfers.UPLOAD: Bound(settings.max_upload_bytes, "max_upload_bytes"),
            files.UPLOAD: form,
            files.PART: Bound(PART_BYTES + files.FORM_BYTES, "the number of parts"),
        },
        settings.body_wait_s,
    )
