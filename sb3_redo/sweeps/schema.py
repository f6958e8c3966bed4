"""Checks the form of sweep files."""

import json
from pathlib import Path

from sb3_redo.sweeps.yaml_document import Document, Location
from sb3_redo.validation import needs, one_of

with needs("sweep", "a sweep"):
    import jsonschema


def check_form(document: Document, schema_file: Path) -> None:
    """Check that a document has the keys and kinds of values that its JSON Schema allows.

    A ``description`` in the schema says what is expected in place of the validator's own words.

    :raises UsageError: naming the file's line
    """
    schema = json.loads(schema_file.read_text())
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
    if error.validator in ("oneOf", "type") and "description" in error.schema:
        raise document.error(f"expected {error.schema['description']}, got {error.instance!r}", location)
    raise document.error(error.message, location)
