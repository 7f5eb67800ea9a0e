"""What can be asked of the server, as an OpenAPI document: for clients that are generated, and for fuzzers."""

from retro_jax import __version__
from retro_jax.config.request import MOST_LOGPROBS, MOST_STOPS
from retro_jax.serve import api, chat, documents

_TEXT, _FLAG = {"type": ["string", "null"]}, {"type": ["boolean", "null"]}
_TEXTS = {"type": ["array", "null"], "items": {"type": "string"}}


def _whole(low: int, high: int) -> dict:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


def _number(low: float, high: float) -> dict:
    return {"type": ["number", "null"], "minimum": low, "maximum": high}


def _object(fields: dict, *needed: str) -> dict:
    return {
        "type": "object",
        "properties": fields,
        "required": list(needed),
        "additionalProperties": False,
    }


def _or_null(schema: dict) -> dict:
    return {"oneOf": [schema, {"type": "null"}]}


_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_WHERE = {"date_from": _TEXT, "date_to": _TEXT, "licence": _TEXTS, "source": _TEXTS}
_RETRIEVAL = {
    "k": _whole(0, api.MANY),
    "step": _whole(0, api.MANY),
    "align": _FLAG,
    "in_prompt": _FLAG,
    "neighbours": _TEXTS,
    "databases": _TEXTS,
    "where": _or_null(_object(_WHERE)),
    "contributions": _FLAG,
    "sources": _FLAG,
}
COMPLETION = {
    "model": _TEXT,
    "method": _TEXT,
    "prompt": {
        "oneOf": [
            {"type": "string"},
            {"type": "array", "minItems": 1, "items": {"type": "string"}},
            _IDS,
            {"type": "array", "minItems": 1, "items": _IDS},
        ]
    },
    "max_tokens": _whole(0, api.MANY),
    "max_completion_tokens": _whole(0, api.MANY),
    "temperature": _number(0, 100),
    "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    "n": _whole(1, api.CHOICES),
    "stream": _FLAG,
    "stream_options": _or_null(_object({"include_usage": _FLAG, "include_obfuscation": _FLAG})),
    "logprobs": _whole(0, MOST_LOGPROBS),
    "echo": _FLAG,
    "stop": {
        "oneOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "maxItems": min(api.STOPS, MOST_STOPS), "items": {"type": "string"}},
            {"type": "null"},
        ]
    },
    "stop_token_ids": {"type": ["array", "null"], "items": {"type": "integer", "minimum": 0}},
    "ignore_eos": _FLAG,
    "seed": _whole(-1, api.SEEDS - 1),
    "user": _TEXT,
    "top_k": _whole(0, api.MANY),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(0.01, 100),
    "retrieval": _or_null(_object(_RETRIEVAL)),
    "best_of": _whole(1, api.CHOICES),
    "presence_penalty": {"enum": [0, None]},
    "frequency_penalty": {"enum": [0, None]},
    "logit_bias": {"enum": [{}, None]},
    "suffix": {"enum": ["", None]},
}
_SAID = {"type": "string"}
_PART = _object({"type": {"enum": ["text"]}, "text": _SAID}, "type", "text")
_CONTENT = {"oneOf": [_SAID, {"type": "array", "items": _PART}]}
_ROLE = {"enum": ["system", "developer", "user", "assistant"]}
_MESSAGE = _object({"role": _ROLE, "content": _CONTENT, "name": _TEXT}, "role", "content")
CHAT = {n: v for n, v in COMPLETION.items() if n not in chat.OTHER} | {
    "messages": {"type": "array", "minItems": 1, "maxItems": chat.MESSAGES, "items": _MESSAGE},
    "logprobs": _FLAG,
    "top_logprobs": _whole(0, MOST_LOGPROBS),
    "response_format": {"enum": [{"type": "text"}, None]},
}
_MAYBE_NO_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_EMBEDDINGS = {
    "model": _TEXT,
    "input": COMPLETION["prompt"],
    "encoding_format": {"enum": ["float", "base64", None]},
    "dimensions": _whole(1, api.MANY),
    "user": _TEXT,
}
_DOCUMENT = dict.fromkeys(documents.FIELDS, _TEXT) | {"id": _SAID, "text": _SAID}
_ADDED = {
    "database": _TEXT,
    "documents": {
        "type": "array",
        "minItems": 1,
        "items": _object(_DOCUMENT, "id", "text"),
    },
}
_DELETED = {
    "database": _TEXT,
    "ids": {"type": "array", "minItems": 1, "items": {"type": "string"}},
}
_ERROR = _object(
    {"error": {"type": "object", "required": ["message", "type", "param", "code"]}}, "error"
)
_REFUSED = (400, 401, 403, 404, 408, 413, 415, 421, 429, 503)


def document() -> dict:
    """The whole of it."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "retro serve", "version": __version__},
        "paths": {
            "/healthz": {"get": _operation("Whether continuations can be asked for.")},
            "/readyz": {
                "get": _operation(
                    "Whether a continuation would be taken now, and not wait for the compiler."
                )
            },
            "/version": {"get": _operation("The version of the server.")},
            "/tokenizer_info": {"get": _operation("What the tokenizer has beside text.")},
            "/tokenize": {
                "post": _operation(
                    "The token ids of a text.",
                    _object(
                        {"model": _TEXT, "prompt": _SAID, "add_special_tokens": _FLAG}, "prompt"
                    ),
                )
            },
            "/detokenize": {
                "post": _operation(
                    "The text of token ids.",
                    _object({"model": _TEXT, "tokens": _MAYBE_NO_IDS}, "tokens"),
                )
            },
            "/metrics": {"get": _operation("For Prometheus.", kinds=("text/plain",))},
            "/v1/models": {"get": _operation("The model, its databases and methods.")},
            "/v1/models/{name}": {"get": _named("The same by its name.")},
            "/v1/embeddings": {
                "post": _operation(
                    "The vectors with which chunks are searched for.", _object(_EMBEDDINGS, "input")
                )
            },
            "/v1/completions": {
                "post": _operation(
                    "Continuations with live retrieval.",
                    _object(COMPLETION, "prompt"),
                    ("application/json", "text/event-stream"),
                )
            },
            "/v1/chat/completions": {
                "post": _operation(
                    "The next message of a conversation.",
                    _object(CHAT, "messages"),
                    ("application/json", "text/event-stream"),
                )
            },
            "/v1/documents": {
                "get": _operation("What databases hold."),
                "post": _operation(
                    "Adds documents, or replaces them.", _object(_ADDED, "documents")
                ),
                "delete": _operation("Deletes documents.", _object(_DELETED, "ids")),
            },
        },
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _named(summary: str) -> dict:
    name = {"name": "name", "in": "path", "required": True, "schema": _SAID}
    return _operation(summary) | {"parameters": [name]}


def _operation(
    summary: str, body: dict | None = None, kinds: tuple[str, ...] = ("application/json",)
) -> dict:
    refused = {"application/json": {"schema": _ERROR}}
    found = {
        "summary": summary,
        "responses": {
            "200": {"description": "Done.", "content": {kind: {} for kind in kinds}},
            **{str(s): {"description": "Refused.", "content": refused} for s in _REFUSED},
        },
    }
    if body:
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": body}},
        }
    return found
