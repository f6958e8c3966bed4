"""Checks the form of sweep files."""

import json
from pathlib import Path
from typing import Any

from sb3_redo.sweeps.yaml_document import Document, Location
from sb3_redo.validation import needs, one_of

with needs("sweep", "a sweep"):
    import jsonschema

_WORDS = {
    "array": "a list",
    "object": "a mapping",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
}
_LIMITS = {
    "minimum": "a number of at least {:,}",
    "maximum": "a number of at most {:,}",
    "exclusiveMinimum": "a number greater than {}",
    "uniqueItems": "values that differ",
    "minItems": "at least {} value",
    "minProperties": "at least {} value",
    "maxProperties": "a single name with its settings",
}
# Otherwise 1.0 would pass as a seed, which command lines refuse.
_TYPES = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
    "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
)
_Validator: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator, type_checker=_TYPES
)


def check_form(document: Document, schema_file: Path) -> None:
    """Check a document's keys and kinds of values against a JSON Schema.

    A ``description`` in the schema replaces the validator's words for an expected value.

    :raises UsageError: naming the file's line
    """
    schema = json.loads(schema_file.read_text())
    errors = list(_Validator(schema).iter_errors(document.content))
    if not errors:
        return
    # A misspelt key gives two errors. The clearer one comes first.
    error = min(errors, key=lambda error: (error.validator == "required", len(error.absolute_path), error.message))
    location: Location = tuple(error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in known)
        try:
            one_of("a key here", unknown, known)
        except (ValueError, TypeError) as refusal:
            raise document.error(str(refusal), (*location, unknown)) from None
    if error.validator == "required":
        raise document.error(f"the key {error.message.split(' is a ')[0]} is missing", location)
    got = "nothing" if error.instance is None else repr(error.instance)
    raise document.error(f"expected {_expected(error)}, got {got}", location)


def _expected(error: Any) -> str:
    """Return the expected value in plain words."""
    if error.validator in ("oneOf", "type") and "description" in error.schema:
        return str(error.schema["description"])
    if error.validator == "type":
        types = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        return " or ".join(_WORDS[name] for name in types)
    if error.validator == "enum":
        return f"one of {', '.join(map(repr, error.validator_value))}"
    return str(_LIMITS.get(error.validator, error.message)).format(error.validator_value)
