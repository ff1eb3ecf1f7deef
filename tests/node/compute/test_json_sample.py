import orjson
import pytest

from lcp_gateway.node.compute.echo_reply import split_tokens
from lcp_gateway.node.compute.json_sample import sample_json
from tests.support.cases import each_case
from tests.support.operations import lines_executed

TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                "parent": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["name"],
        }
    },
    "$ref": "#/$defs/node",
}


@each_case(
    "schema, value",
    [
        ({"type": "string"}, "echo"),
        ({"type": "string", "enum": ["b", "a"]}, "b"),
        ({"const": 7}, 7),
        ({"type": "string", "minLength": 6}, "echoec"),
        ({"type": "string", "maxLength": 2}, "ec"),
        ({"type": "string", "format": "date"}, "2024-01-01"),
        ({"type": "integer", "minimum": 5}, 5),
        ({"type": "integer", "exclusiveMinimum": 5}, 6),
        ({"type": "number", "maximum": 0.5}, 0.5),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["null", "integer"]}, 1),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"type": "array", "prefixItems": [{"type": "null"}, {"type": "integer"}]}, [None, 1]),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, "echo"),
        ({"anyOf": [{"type": "null"}]}, None),
        ({"type": "object"}, {}),
        ({"properties": {"a": {"type": "integer"}}}, {"a": 1}),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {"type": "integer"}}}]}, {"a": "echo", "b": 1}),
        ({"$defs": {"x": {"type": "integer"}}, "$ref": "#/$defs/x"}, 1),
        ({"$ref": "#/nowhere"}, "echo"),
        ({"$ref": "https://example.com/schema"}, "echo"),
        (True, "echo"),
        ({}, "echo"),
        (None, "echo"),
    ],
)
def test_a_value_has_the_shape_of_its_schema(schema, value):
    assert sample_json(schema) == value


def test_a_type_that_contains_itself_ends():
    tree = sample_json(TREE)

    depth = 0
    while tree and tree.get("children"):
        assert tree["name"] == "echo"
        tree = tree["children"][0]
        depth += 1
    assert 0 < depth < 30


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#"}]},
        {"allOf": [{"$ref": "#"}]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 9_999},
        {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}},
        {"type": 5, "properties": 3, "enum": [], "minLength": "x"},
        {"type": "string", "minLength": 10**9},
        {
            "$defs": {"x": {"const": "x" * 800_000}},
            "type": "array",
            "minItems": 64,
            "items": {"type": "array", "minItems": 64, "items": {"$ref": "#/$defs/x"}},
        },
        {
            "type": "object",
            "properties": {str(at): {"$ref": "#"} for at in range(20_000)},
            "required": [str(at) for at in range(20_000)],
        },
        {"anyOf": [{"type": "null"}] * 50_000 + [{"$ref": "#"}]},
        {"properties": {str(at): {} for at in range(20_000)}, "allOf": [{"properties": {"a": {"$ref": "#"}}}]},
        {"allOf": [{"properties": 5}], "properties": "x"},
        {"allOf": "x", "anyOf": {}, "required": 3, "type": "object"},
    ],
)
def test_a_hostile_schema_costs_little(schema):
    assert lines_executed(lambda: sample_json(schema)) < 2_000_000
    value = sample_json(schema)
    assert len(orjson.dumps(value)) < 10_000_000


@pytest.mark.parametrize("text", ["", "one", " one  two\n", "x" * 100, " " * 50_000, "a\tb é 😀"])
def test_tokens_join_up_to_the_text(text):
    tokens = split_tokens(text)

    assert "".join(tokens) == text
    assert all(len(token.strip()) <= 16 for token in tokens)
