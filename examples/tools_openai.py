"""A coffee shop whose barista is a model with tools, by the OpenAI client and a running server.

mlxmtp serve                                     # in another terminal: the bundled model knows these tools
.venv/bin/python examples/tools_openai.py [http://127.0.0.1:8080]
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from openai import OpenAI

MENU = {"latte": "menu_7", "americano": "menu_2", "green tea": "menu_5"}
TURNS = 4
"""Answers of the model at most: a small one goes on calling tools."""
order: list[str] = []


def get_menu_items(query: str = "") -> list[dict[str, str]]:
    return [{"id": MENU[name], "name": name} for name in MENU if name in query.lower()]


def add_order_item(menu_item_id: str = "", quantity: str = "1", **_: Any) -> dict[str, str]:
    order.append(f"{quantity} x {menu_item_id}")
    return {"order_id": "order_1", "added": menu_item_id}


def get_order_details(**_: Any) -> dict[str, Any]:
    return {"order_id": "order_1", "items": order}


def tool(name: str, description: str, *arguments: str) -> Any:
    parameters = {"type": "object", "properties": {argument: {"type": "string"} for argument in arguments}}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "get_menu_items": get_menu_items,
    "add_order_item": add_order_item,
    "get_order_details": get_order_details,
}
TOOLS = [
    tool("get_menu_items", "Find drinks on the menu", "query"),
    tool("add_order_item", "Add a drink to the order", "menu_item_id", "quantity"),
    tool("get_order_details", "Show the order", "order_id"),
]


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    messages: list[Any] = [{"role": "user", "content": "Hello! A small latte for here, please."}]
    for _ in range(TURNS):
        answer = client.chat.completions.create(
            model="mlxmtp", messages=messages, tools=TOOLS, temperature=0, max_tokens=200
        )
        message = answer.choices[0].message
        messages.append(message)
        if message.content:
            print(f"barista  {message.content.strip()}")
        for call in message.tool_calls or ():
            assert call.type == "function"
            result = json.dumps(FUNCTIONS[call.function.name](**json.loads(call.function.arguments)))
            print(f"tool     {call.function.name}({call.function.arguments}) -> {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        timings = (answer.model_extra or {})["timings"]  # as llama.cpp's server has them, and more
        print(f"         {timings['cache_n']} tokens from the cache, {timings['tokens_per_round']} a pass")
        if not message.tool_calls:
            break
    print(f"order    {', '.join(order)}")


if __name__ == "__main__":
    main()
