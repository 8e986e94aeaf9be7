"""Read protobuf's text format, as far as config.pbtxt uses it, into dicts of lists: any field may stand again."""

import json
import re

TOKEN = re.compile(r'\s*(?:#[^\n]*\n\s*)*("(?:[^"\\]|\\.)*"|[A-Za-z_]\w*|-?\d+|[{}\[\]:,])')


def parse(text):
    tokens = TOKEN.findall(text)
    message, rest = _message([*tokens, "}"])
    assert rest == [], rest
    return message


def only(values):
    """Return the one value of a field that stands once."""
    (value,) = values
    return value


def _message(tokens):
    fields = {}
    while tokens[0] != "}":
        name, tokens = tokens[0], tokens[1:]
        assert name.isidentifier(), name
        if tokens[0] == ":":
            tokens = tokens[1:]
        if tokens[0] == "[":
            tokens = tokens[1:]
            while tokens[0] != "]":
                value, tokens = _value(tokens)
                fields.setdefault(name, []).append(value)
                tokens = tokens[1:] if tokens[0] == "," else tokens
            tokens = tokens[1:]
        else:
            value, tokens = _value(tokens)
            fields.setdefault(name, []).append(value)
    return fields, tokens[1:]


def _value(tokens):
    if tokens[0] == "{":
        return _message(tokens[1:])
    word = tokens[0]
    value = json.loads(word) if word[0] == '"' or word.lstrip("-").isdigit() else word
    return value, tokens[1:]
