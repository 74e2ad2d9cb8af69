"""`%memplan fun(params, batch)` and `%%memplan`: the explorer for the gradient of a call, as IPython magics."""

from __future__ import annotations

import ast
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class

from tiny_backprop_widgets.explorer.plan_explorer import PlanExplorer, explore

_USAGE = "write a call after it, as in `%memplan loss(params, batch)`"


@magics_class
class MemplanMagics(Magics):
    """The magics; `%load_ext tiny_backprop` brings them."""

    @line_cell_magic
    def memplan(self, line: str, cell: str | None = None) -> PlanExplorer:
        """Open the explorer for the gradient of a call, which is not run.

        `%memplan fun(params, batch)` evaluates the function and its arguments in the notebook. `%%memplan fun(…)` runs
        the cell first; `%%memplan` alone takes the call from the cell's last line.
        """
        shell = self.shell
        assert shell is not None
        if cell is not None:
            body, last = _without_last_call(cell) if not line.strip() else (cell, "")
            shell.run_cell(body).raise_error()
            line = line if line.strip() else last
        call = _call(line)
        names = shell.user_ns

        def value(node: ast.expr) -> Any:
            return eval(compile(ast.Expression(node), "<memplan>", "eval"), shell.user_global_ns, names)

        args: list[Any] = []
        for arg in call.args:
            args += value(arg.value) if isinstance(arg, ast.Starred) else [value(arg)]
        kwargs: dict[str, Any] = {}
        for keyword in call.keywords:
            kwargs |= value(keyword.value) if keyword.arg is None else {keyword.arg: value(keyword.value)}
        return explore(value(call.func), *args, **kwargs)


def _call(text: str) -> ast.Call:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as e:
        raise UsageError(f"%memplan: {text.strip()!r} is no expression of Python ({e.msg}); {_USAGE}") from None
    if not isinstance(tree, ast.Call):
        raise UsageError(f"%memplan: {text.strip()!r} is no call; {_USAGE}")
    return tree


def _without_last_call(cell: str) -> tuple[str, str]:
    """Return a cell without its last statement, and that statement, which has to be an expression."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:
        return cell, ""  # running it shows the error where it is
    if not statements or not isinstance(statements[-1], ast.Expr):
        raise UsageError(f"%%memplan: the cell does not end with a call; end it with one, or {_USAGE}")
    last = statements[-1]
    lines = cell.splitlines()
    return "\n".join(lines[: last.lineno - 1]), ast.unparse(last)
