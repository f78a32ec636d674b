"""YAML of plain values: JSON's types, each key once, of bounded size."""

from typing import Any

import yaml

_MOST_VALUES = 100_000
_DEEPEST = 100
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map")}


def load_yaml(text: str) -> Any:  # noqa: ANN401 - whatever the text says
    """The value of a text in YAML: only plain values, with each key once. A date is text.

    Raises:
        yaml.YAMLError: if it is not such a text, or expands to too many values.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, OverflowError) as error:
        raise yaml.YAMLError(str(error)) from None


class _Loader(yaml.SafeLoader):
    """Refuses input that PyYAML silently accepts or answers with a Python error.

    These are duplicate keys, of which it would keep the last; types other than those of JSON; aliases that expand to
    very many values; and invalid numbers. Deep nesting is refused at once, since PyYAML would search for a key again at
    each depth.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: ANN401, N803 - as the base class has it
        """Count a level of brackets."""
        if self.flow_level >= _DEEPEST:
            raise yaml.scanner.ScannerError(None, None, "it is nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def get_single_node(self) -> yaml.Node | None:
        """The document, unless it is too large with expanded aliases."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401 - whatever it says
        """A value of one of JSON's types."""
        if node.tag not in _PLAIN_TAGS:
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise yaml.constructor.ConstructorError(None, None, f"{kind} is no type of a setting", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, KeyError, AttributeError):
            text = str(node.value)[:40]
            raise yaml.constructor.ConstructorError(None, None, f"{text} is no number", node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping with unique keys."""
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values of a node with expanded aliases.

    Raises:
        yaml.YAMLError: if they are too many, or a node contains itself.
    """
    if (found := known.get(id(node))) is not None:
        if found < 0:
            raise yaml.composer.ComposerError(None, None, "a value holds itself", node.start_mark)
        return found
    known[id(node)] = -1
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    count = 1
    for part in inner:
        count += _count(part, known)
        if count > _MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {_MOST_VALUES:,} values", node.start_mark)
    known[id(node)] = count
    return count
