"""A private Jupyter front-end on the loopback interface, driven by the system's chromium, which can reach nothing else.

Waits are on states of the page, never on sleeps. Browser tests, screenshots and the explorer's benchmark use it.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

START_SECONDS = 60
CHROMIUM_FLAGS = [
    "--no-sandbox",  # root, as in a container, has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
# The toolbar says idle before a kernel is connected.
WAIT_FOR_KERNEL = """async () => {
  const app = window.jupyterapp; await app.restored;
  const notebook = app.shell.currentWidget; await notebook.context.ready; await notebook.sessionContext.ready;
  await notebook.sessionContext.session.kernel.info;
}"""
RUN_ALL = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
RUN_CODE = """async (code) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({code}); let text = '';
  future.onIOPub = (m) => { text += m.content.text ?? m.content.traceback?.join('\\n') ?? ''; };
  const reply = await future.done; return [reply.content.status, text];
}"""


class FrontEnd(NamedTuple):
    """A program that opens notebooks in a browser: where it answers, where a notebook is, who serves it, options."""

    module: str
    answers: str
    path: str
    server: str
    options: dict[str, Any]


JUPYTERLAB = FrontEnd(
    "jupyterlab",
    "api/kernels",
    "doc/tree/{}?reset&",
    "ServerApp",
    {"LabApp.expose_app_in_browser": True, "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate"},
)
NOTEBOOK = FrontEnd(
    "notebook", "api/kernels", "notebooks/{}?", "ServerApp", {"JupyterNotebookApp.expose_app_in_browser": True}
)
VOILA = FrontEnd("voila", "", "voila/render/{}?", "Voila", {})


class Lab(NamedTuple):
    """A running front-end: its address, its token, and the folder of its notebooks."""

    url: str
    token: str
    folder: Path
    front_end: FrontEnd

    def address(self, notebook: Path) -> str:
        """Return where a notebook is shown."""
        return f"{self.url}/{self.front_end.path.format(notebook.name)}token={self.token}"


@contextlib.contextmanager
def running_lab(folder: Path, front_end: FrontEnd = JUPYTERLAB) -> Iterator[Lab]:
    """Start a front-end that keeps everything in an empty folder, and stop it in the end."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    lab = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16), folder / "notebooks", front_end)
    lab.folder.mkdir()
    with (folder / "lab.log").open("wb") as log:
        process = subprocess.Popen(
            _command(port, lab),
            env=_environment(folder, lab.token),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_for(lab, process, folder / "lab.log")
            yield lab
        finally:
            _stop(process)


def _command(port: int, lab: Lab) -> list[str]:
    server = {"ip": "127.0.0.1", "port": port, "port_retries": 0, "root_dir": lab.folder}
    options = {f"{lab.front_end.server}.{name}": value for name, value in server.items()} | lab.front_end.options
    flags = [f"--{name}={value}" for name, value in options.items()]
    as_root = [] if lab.front_end is VOILA else ["--allow-root"]
    return [sys.executable, "-m", lab.front_end.module, "--no-browser", *as_root, *flags]


def _environment(folder: Path, token: str) -> dict[str, str]:
    """Keep the user's own settings out of the test, and the test out of theirs."""
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    folders = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
        "MPLCONFIGDIR": "matplotlib",
    }
    return {**os.environ, "JUPYTER_TOKEN": token} | {name: str(folder / path) for name, path in folders.items()}


def _wait_for(lab: Lab, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(
        f"{lab.url}/{lab.front_end.answers}", headers={"Authorization": f"token {lab.token}"}
    )
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(request, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"{lab.front_end.module} did not start within {START_SECONDS} s: {log.read_text()[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the group of processes that we started: the server and its kernels."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_number)
            process.wait(15)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


@contextlib.contextmanager
def running_browser() -> Iterator[Any]:
    """Start the system's chromium, which can reach nothing but this machine, and close it in the end."""
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


class Notebook:
    """A notebook open in a front-end, all its cells executed.

    Attributes:
      page: Playwright's page.
      path: The notebook's file.
      problems: Errors on the console, uncaught exceptions, and requests to any other host.
    """

    def __init__(self, page: Any, lab: Lab, cells: list[str]):
        self.page, self.problems = page, list[str]()
        self.path = lab.folder / f"{secrets.token_hex(4)}.ipynb"
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        notebook.metadata["kernelspec"] = kernel
        nbformat.write(notebook, self.path)
        self._listen(lab.url)
        page.goto(lab.address(self.path), wait_until="domcontentloaded")
        if lab.front_end is VOILA:  # which runs it by itself
            return
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        page.evaluate(WAIT_FOR_KERNEL)
        assert page.evaluate(RUN_ALL), page.locator(".jp-OutputArea").all_inner_texts()

    def _listen(self, url: str) -> None:
        ours = (url, url.replace("http", "ws", 1), "data:", "blob:")

        def on_console(message: Any) -> None:
            if message.type == "error":
                self.problems.append(f"console: {message.text}")

        def on_request(request: Any) -> None:
            if not request.url.startswith(ours):
                self.problems.append(f"request: {request.url}")

        self.page.on("console", on_console)
        self.page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        self.page.on("request", on_request)

    def run(self, code: str) -> str:
        """Run code in the notebook's kernel and return what it prints."""
        status, text = self.page.evaluate(RUN_CODE, code)
        assert status == "ok", text
        return text.strip()
