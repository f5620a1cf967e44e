"""What suites are written in: components, names with arguments that stand for objects.

    Inpainting: {mask: {random_mask: {shape: $shape, keep: 0.5, seed: 0}}}

is ``Inpainting(mask=random_mask(shape=(3, 96, 96), keep=0.5, seed=0))``. A component is a mapping of one name to its arguments, or
the name alone. A name is one that the place knows, or ``package.module:Name`` for one of your own, found from the folder you
are in. An argument that is a mapping is a component too; one like ``$shape`` is filled in by the benchmark.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

Component = str | dict[str, Any]
Room = Mapping[str, Callable[..., Any]]  # the names that a place knows
PLAIN = (bool, int, float, str, type(None))


def split(component: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments. ``ValueError`` if it is no component."""
    if isinstance(component, str):
        return component, {}
    if isinstance(component, dict) and len(component) == 1:
        ((name, arguments),) = component.items()
        arguments = {} if arguments is None else arguments
        if isinstance(name, str) and isinstance(arguments, dict):
            return name, arguments
    raise ValueError(f"a name, or one name with its arguments, such as {{Name: {{key: value}}}}, is needed, got {component!r}")


def find(name: str, room: Room) -> Callable[..., Any]:
    """What a name stands for. ``ValueError`` with the names that are known, or with what is wrong with the import path."""
    if name in room:
        return room[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        near = get_close_matches(name, room, 1)
        raise ValueError(f"unknown name {name!r}; {f'did you mean {near[0]}? ' if near else ''}known: {', '.join(room)}; or give package.module:Name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name!r} cannot be imported ({error}), from the folder {os.getcwd()}") from error
    if not callable(found):
        raise TypeError(f"{name!r} is a {type(found).__name__}, not a class or a function")
    return found


def bound(component: Component, room: Room, given: Mapping[str, Any], fixed: tuple[str, ...] = ()) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What the name stands for, and its arguments as values; ``fixed`` names positional arguments that the caller will give."""
    name, arguments = split(component)
    target = find(name, room)
    values = {key: _value(value, room, given) for key, value in arguments.items()}
    try:
        inspect.signature(target).bind_partial(*fixed, **values)
    except TypeError as error:
        raise ValueError(f"{name}: {error}; it takes {', '.join(parameters(target)[len(fixed) :]) or 'nothing'}") from None
    return target, values


def build(component: Component, room: Room, given: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """The object that a component stands for. ``given`` fills in ``$names``; ``more`` are arguments the benchmark adds.

    ``ValueError`` names the component for arguments that do not fit it or that it refuses.
    """
    name, _ = split(component)
    target, values = bound(component, room, given or {})
    try:
        return target(**values, **more)
    except (TypeError, LookupError, ValueError) as error:
        raise ValueError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error


def _value(value: Any, room: Room, given: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return build(value, room, given)
    if isinstance(value, list):
        return [_value(v, room, given) for v in value]
    if isinstance(value, str) and value.startswith("$"):
        if value not in given:
            raise ValueError(f"nothing is known as {value} here; known: {', '.join(given) or 'none'}")
        return given[value]
    return value


def parameters(target: Callable[..., Any]) -> list[str]:
    """Names of the arguments that a class or function takes."""
    return list(inspect.signature(target).parameters)


def of_dataclass(instance: Any, names: Mapping[type, str]) -> Component:
    """An instance of a dataclass as a component, with all its settings; ``names`` are those that the place knows."""
    kind = type(instance)
    settings = {f.name: getattr(instance, f.name) for f in fields(instance)}
    settings = {k: of_dataclass(v, names) if is_dataclass(v) else v for k, v in settings.items()}
    for key, value in settings.items():
        if not isinstance(value, (*PLAIN, dict)):
            raise TypeError(f"{kind.__name__}: {key} is a {type(value).__name__}, which a suite cannot hold; use plain values or dataclasses")
    return {names.get(kind, f"{kind.__module__}:{kind.__qualname__}"): settings}


def with_defaults(component: Component, room: Room, skip: tuple[str, ...] = ()) -> Component:
    """A component with the defaults of its arguments written out, and of theirs, but for arguments called as in ``skip``.

    Defaults that are no plain values stay out.
    """
    name, arguments = split(component)
    known = inspect.signature(find(name, room)).parameters.values()
    defaults = {p.name: p.default for p in known if p.name not in skip and isinstance(p.default, PLAIN)}
    given = {k: with_defaults(v, room, skip) if isinstance(v, dict) else v for k, v in arguments.items()}
    return {name: defaults | given}


def text(component: Component) -> str:
    """A component as a call: ``total_variation(iterations=150)``."""
    name, arguments = split(component)
    return f"{name}({', '.join(f'{k}={_text(v)}' for k, v in arguments.items())})"


def _text(value: Any) -> str:
    return text(value) if isinstance(value, dict) else repr(value)


def canonical(value: Any) -> str:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def room_of(module: Any, names: Iterable[str]) -> dict[str, Callable[..., Any]]:
    """Names of a module that can be called."""
    return {name: getattr(module, name) for name in names if callable(getattr(module, name))}
