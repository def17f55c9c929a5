"""Run readers' notebooks in JupyterLab, in headless Chromium, as a reader does.

    python tools/check_lab.py [NAME ...] [--all] [--shots FOLDER]

For each notebook (chapters 2 and 8 where none is named): Run All gives no error,
nothing on stderr and no error in the console; every slider of a widget, moved by
keyboard, changes the value in the kernel, and a value set in the kernel moves the
slider; the panel that trains does, cancels, says what stopped it, and refuses a
learning rate that is out of bounds. Then the notebook is saved and opened again, its
kernel gone: the widgets stand there and move. The same of `nbconvert --to html`, from
disk. Nothing asks for another host. Without Chromium the check is skipped, unless
HRA_REQUIRE_BROWSER is set.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lab
from check_site import ARGS, BROWSERS

ROOT = Path(__file__).resolve().parents[1]
USUAL = ("02_lora", "08_shira_masks")
# JupyterLab's own: an attachment is asked for before it is resolved
NOT_OURS = ("ERR_UNKNOWN_URL_SCHEME", "status of 404", "favicon")
OPEN = "() => globalThis.jupyterapp?.shell.currentWidget?.sessionContext?.isReady"
NOTEBOOK = "const panel = jupyterapp.shell.currentWidget;"
BUSY = f"""() => {{ {NOTEBOOK}
  const code = panel.content.widgets.filter((c) => c.model.type === "code");
  return code.filter((c) => c.prompt === "*" || (c.model.value ?? c.model.sharedModel
    .getSource()).trim() && !c.model.executionCount).length; }}"""
WRONG = f"""() => {{ {NOTEBOOK}
  const found = [];
  panel.content.widgets.forEach((cell, i) => {{
    if (cell.model.type !== "code") return;
    for (const o of cell.model.outputs.toJSON()) {{
      if (o.output_type === "error") found.push([i, `${{o.ename}}: ${{o.evalue}}`]);
      if (o.name === "stderr") found.push([i, `stderr: ${{o.text}}`]);
    }}
  }});
  return found; }}"""
ASK = f"""async (code) => {{ {NOTEBOOK}
  const done = panel.sessionContext.session.kernel.requestExecute(
    {{ code: "", silent: true, user_expressions: {{ said: code }} }});
  const said = (await done.done).content.user_expressions.said;
  if (said.status !== "ok") return `${{said.ename}}: ${{said.evalue}}`;
  return said.data["text/plain"]; }}"""
# a widget by the name that its page has for it; sets what is given, says its state
KERNEL = (
    "(lambda w, new: ([setattr(w, k, v) for k, v in new.items()], "
    "__import__('json').dumps(w.public_state(), sort_keys=True, default=str))[1])"
    "(next(w for w in __import__('ipywidgets').widgets.widget._instances.values() "
    "if getattr(w, '_live', '') == {name!r}), {new!r})"
)


class Lab:
    """A JupyterLab on a copy of the notebooks, and a browser page."""

    def __init__(self, folder: Path, browser) -> None:
        self.folder, self.outside, self.errors = folder, [], []
        lab.write(folder / "lab", ROOT / "_build/html", "../html/", "", False)
        settings = folder / "config/labconfig"
        shutil.copytree(ROOT / "tools/jupyter/labconfig", settings)
        whole = {"windowingMode": "none"}  # every output is in the page
        (settings / "default_setting_overrides.json").write_text(
            json.dumps({"@jupyterlab/notebook-extension:tracker": whole})
        )
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.token = secrets.token_hex(8)
        self.home = f"http://127.0.0.1:{port}"
        own = {
            "JUPYTER_CONFIG_PATH": str(folder / "config"),
            "JUPYTER_CONFIG_DIR": str(folder / "own"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
        }
        self.log = open(folder / "server.log", "w")
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
        command += [f"--port={port}", f"--IdentityProvider.token={self.token}"]
        command += [f"--ServerApp.root_dir={folder}", "--expose-app-in-browser"]
        self.server = subprocess.Popen(
            command, env=os.environ | own, stdout=self.log, stderr=self.log
        )
        self.page = browser.new_page(viewport={"width": 1300, "height": 1000})
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.route("**/*", self.keep_in)

    def hear(self, message) -> None:
        if message.type == "error" and not any(n in message.text for n in NOT_OURS):
            self.errors.append(message.text)

    def keep_in(self, route) -> None:
        url = route.request.url
        if url.startswith(("http://127.0.0.1", "data:", "blob:", "file:")):
            route.continue_()
        else:
            self.outside.append(url)
            route.abort()

    def open(self, name: str, patience: float = 90) -> None:
        until = time.time() + patience
        while True:
            try:
                self.page.goto(
                    f"{self.home}/doc/tree/lab/{name}.ipynb?reset&token={self.token}"
                )
                break
            except Exception:
                if time.time() > until or self.server.poll() is not None:
                    raise
                time.sleep(0.5)
        self.page.wait_for_function(OPEN, timeout=1000 * patience)

    def ask(self, code: str) -> str:
        return self.page.evaluate(ASK, code)

    def command(self, name: str) -> None:
        self.page.evaluate("(c) => jupyterapp.commands.execute(c)", name)

    def close(self) -> None:
        self.page.close()
        self.server.terminate()
        try:
            self.server.wait(30)
        except subprocess.TimeoutExpired:  # a kernel that does not let go
            self.server.kill()
        self.log.close()


def widgets(page):
    """The widgets of the page that answered, and their sliders."""
    for host in page.locator("[data-hra]").all():
        sliders = host.locator("input[type=range]").all()
        yield host, [s for s in sliders if s.is_visible()]


def begin(host) -> None:
    """Commit to a guess, where a widget asks for one first."""
    guess = host.get_by_role("button", name="Commit")
    if guess.count() and guess.first.is_visible():
        choice = host.locator("input[type=radio]")
        if choice.count():
            choice.first.check()
        guess.first.click()


def press(page, slider) -> tuple[str, str]:
    before = slider.input_value()
    slider.focus()
    page.keyboard.press("ArrowRight")
    if slider.input_value() == before:
        page.keyboard.press("ArrowLeft")
    return before, slider.input_value()


def check_live(on: Lab, say) -> int:
    moved = 0
    for i, (host, _) in enumerate(widgets(on.page)):
        name = host.get_attribute("data-live")
        if not name:
            continue  # what a panel shows without a kernel
        host.scroll_into_view_if_needed()
        begin(host)
        for k, slider in enumerate(
            s for s in host.locator("input[type=range]").all() if s.is_visible()
        ):
            where = f"widget {i + 1}, slider {k + 1}"
            state = on.ask(KERNEL.format(name=name, new={}))
            old, new = press(on.page, slider)
            if old == new:
                say(f"{where} does not move by keyboard")
                continue
            after = wait(lambda n=name: on.ask(KERNEL.format(name=n, new={})), state)
            if after == state:
                say(f"{where} does not reach the kernel: {state[:80]}")
                continue
            changed = difference(state, after)
            on.ask(KERNEL.format(name=name, new=changed))
            if wait(slider.input_value, new) != old:
                say(f"{where} does not follow the kernel back to {changed}")
            moved += 1
    return moved


def difference(before: str, after: str) -> dict:
    """What of the state is to be set for it to be as before."""
    old, new = (json.loads(eval(s)) for s in (before, after))  # a string's repr
    return {k: old[k] for k in old if old[k] != new[k]}


def wait(get, other, seconds: float = 5.0):
    """`get()` once it differs from `other`, or what it is after some seconds."""
    until = time.time() + seconds
    while (value := get()) == other and time.time() < until:
        time.sleep(0.05)
    return value


def check_panel(on: Lab, say) -> None:
    for host in on.page.locator(".hra-live[data-live]").all():
        name = host.get_attribute("data-live")
        status = host.locator("[role=status]").first

        def press_(n, host=host):
            return host.get_by_role("button", name=n).first.click()

        def reaches(words: str, seconds: float, status=status) -> bool:
            until = time.time() + seconds
            while words not in (said := status.inner_text()) and time.time() < until:
                if said.startswith("Stopped:"):
                    break
                time.sleep(0.2)
            return words in said

        host.scroll_into_view_if_needed()
        press_("Train")
        if reaches("Step", 120):
            press_("Cancel")
            if not reaches("Cancelled", 60):
                say(f"the panel does not cancel: {status.inner_text()!r}")
        else:
            say(f"the panel does not train: {status.inner_text()!r}")
        said = on.ask(KERNEL.format(name=name, new={"lr": 5.0}))
        if "out of range" not in said:
            say(f"a learning rate of 5 is not refused: {said[:120]}")
        wrong = {"targets": {"nothing": "no_such_layer"}, "target": "nothing"}
        on.ask(KERNEL.format(name=name, new=wrong))
        press_("Train")
        if not reaches("Stopped:", 60):
            say(f"the panel does not say what stopped it: {status.inner_text()!r}")


def check_still(page, say, what: str) -> None:
    """Without a kernel: a slider of each widget moves, and its sentence with it."""
    page.wait_for_timeout(1500)
    if page.get_by_text("Error displaying widget").count():
        say(f"{what}: a widget has no model")
    for i, (host, _) in enumerate(widgets(page)):
        host.scroll_into_view_if_needed()
        begin(host)
        sliders = [s for s in host.locator("input[type=range]").all() if s.is_visible()]
        if not sliders:
            if not host.locator("img, svg, button").count():
                say(f"{what}: widget {i + 1} shows nothing")
            continue
        old, new = press(page, sliders[0])
        if old == new:
            say(f"{what}: widget {i + 1} does not move")


def check(on: Lab, name: str, browser, shots: Path | None, panel: bool) -> list[str]:
    bad: list[str] = []

    def say(words):
        return bad.append(f"{name}: {words}")

    on.errors.clear()
    on.open(name)
    on.command("notebook:run-all-cells")
    until = time.time() + 400
    while on.page.evaluate(BUSY) and time.time() < until:
        if any("stderr" not in w for _, w in on.page.evaluate(WRONG)):
            break
        time.sleep(1)
    bad += [f"{name}: cell {i}: {w[:300]}" for i, w in on.page.evaluate(WRONG)]
    if not bad and (left := on.page.evaluate(BUSY)):
        say(f"{left} cells have not run after 400 seconds")
    on.page.wait_for_timeout(1000)
    if shots:
        on.page.screenshot(path=shots / f"{name}_live.png")
    if not on.page.locator(".jp-Notebook [data-hra]").count():
        say("shows no widget")
        return bad
    moved = check_live(on, say)
    if panel:
        check_panel(on, say)
    on.command("docmanager:save")
    on.page.wait_for_timeout(1500)
    on.command("notebook:shutdown-kernel")
    path = on.folder / f"lab/{name}.ipynb"
    on.page.goto("about:blank")
    on.page.goto(f"{on.home}/doc/tree/lab/{name}.ipynb?reset&token={on.token}")
    on.page.locator(".jp-Notebook [data-hra]").first.wait_for(timeout=60_000)
    if shots:
        on.page.screenshot(path=shots / f"{name}_again.png")
    check_still(on.page, say, "opened again")
    other = browser.new_page(viewport={"width": 1300, "height": 1000})
    # nbconvert's own page asks for two libraries elsewhere: there is no network
    other.route(lambda url: not url.startswith(("file:", "data:")), lambda r: r.abort())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "nbconvert",
            "--to",
            "html",
            "--output-dir",
            str(on.folder),
            str(path),
        ],
        check=True,
        capture_output=True,
        env=os.environ | {"JUPYTER_CONFIG_DIR": str(on.folder / "own")},
    )
    other.goto((on.folder / f"{name}.html").as_uri())
    check_still(other, say, "nbconvert")
    if shots:
        other.screenshot(path=shots / f"{name}_export.png")
    other.close()
    bad += [f"{name}: console: {e[:300]}" for e in on.errors]
    print(f"{name}: {moved} sliders reach the kernel and come back")
    return bad


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools/check_lab.py")
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--all", action="store_true", help="every chapter")
    parser.add_argument("--shots", type=Path)
    args = parser.parse_args(argv)
    found = next((b for b in BROWSERS if shutil.which(b)), None)
    if found is None:
        print("check_lab: no Chromium here, skipped")
        return int("HRA_REQUIRE_BROWSER" in os.environ)
    there = sorted(p.stem for p in (ROOT / "notebooks/text").glob("*.md"))
    names = there if args.all else args.names or list(USUAL)
    if missing := [n for n in names if n not in there]:
        raise SystemExit(
            f"check_lab: no chapter {missing[0]}; there are {', '.join(there)}."
        )
    from playwright.sync_api import sync_playwright

    bad: list[str] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which(found), args=ARGS)
        jupyter = Lab(Path(folder), browser)
        try:
            for name in names:
                bad += check(jupyter, name, browser, args.shots, name == names[0])
            bad += [f"asks for {url}" for url in jupyter.outside]
        finally:
            jupyter.close()
            browser.close()
    print("\n".join(bad) or f"check_lab: {len(names)} notebooks, nothing to report")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
