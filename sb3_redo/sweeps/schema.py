"""The form of sweep files."""

import json
from pathlib import Path

from sb3_redo.sweeps.conditions import CALLBACK
from sb3_redo.sweeps.yaml_document import Document, Location
from sb3_redo.validation import needs, one_of

with needs("sweep", "a sweep"):
    import jsonschema


def check_form(document: Document, kind: str = "sweep") -> None:
    """See that a sweep file has the keys and kinds of values that a sweep file has.

    :param kind: ``sweep`` of agents, ``classifier`` or ``offline``
    :raises UsageError: naming the file's line
    """
    schema = json.loads(Path(__file__).with_name(f"{kind}_schema.json").read_text())
    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(document.content))
    if not errors:
        return
    # A misspelt key is two errors, and the one that says so comes first.
    error = min(errors, key=lambda error: (error.validator == "required", len(error.absolute_path), error.message))
    location: Location = tuple(error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in known)
        try:
            one_of("a key here", unknown, known)
        except (ValueError, TypeError) as refusal:
            raise document.error(str(refusal), (*location, unknown)) from None
    if kind == "sweep" and error.validator in ("oneOf", "type") and location[:1] == ("grid",) and len(location) == 2:
        values = "a list of values, or a mapping of labels to values"
        wanted = "a mapping of labels to lists of callbacks" if location[1] == CALLBACK else values
        raise document.error(f"expected {wanted}, got {error.instance!r}", location)
    raise document.error(error.message, location)
