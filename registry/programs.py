"""Which command lines are a way around naming a program: code in arguments, launchers of others.

Pure, and by name alone: what a file of some other name really is, only its hash can tell (see
`registry.commands`). An interpreter or launcher that is known here takes the options that are
known here and no others, so what nobody thought of is refused.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from registry.command_options import Options, RefusedCommand
from registry.containers import refuse_way_out

Check = Callable[[Sequence[str]], None]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SHELLS: Final = _words(
    "sh bash rbash dash ash zsh ksh mksh csh tcsh fish elvish nu xonsh yash busybox toybox pwsh "
    "powershell cmd command wscript cscript"
)
_STARTERS: Final = _words(
    "env xargs find nohup nice ionice setsid setpriv timeout time stdbuf sudo doas su runuser "
    "chroot unshare nsenter bwrap firejail prlimit taskset chrt strace ltrace gdb lldb script "
    "scriptreplay watch parallel flock ssh scp sftp rsync tar git make gmake cmake ninja awk gawk "
    "mawk nawk sed vi vim nvim ex ed emacs nano less more man at batch crontab systemd-run "
    "start-stop-daemon daemonize tmux screen expect socat nc ncat netcat telnet curl wget m4 dd "
    "cp mv ln install tee chmod chown rm eval exec source dbus-send xdg-open open osascript "
    "ld.so ld-linux-x86-64.so ld-linux-aarch64.so ld-musl-x86_64.so cc gcc clang tcc go cargo "
    "rustc mvn gradle pip conda mamba psql mysql sqlite openssl rundll mshta regsvr"
)
_PACKAGE: Final = (
    r"(@[a-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*(\[[\w,.-]+\])?((@|==|>=|<=|~=|<|>)[\w.*+-]+)?"
)
_NUMBER: Final = r"\d+(\.\d+)*"
_PATH: Final = r"[^-].*"

_PYTHON: Final = Options(
    r"-[IEsSuBOPqbv]+",
    {
        "-X": r"dev|utf8(=[01])?|faulthandler|tracemalloc|no_debug_ranges|importtime",
        "-W": r"ignore|default|error|always|module|once",
        "--check-hash-based-pycs": r"always|default|never",
    },
)
_CODE_MODULES: Final = _words(
    "code codeop pdb timeit trace profile cProfile runpy doctest unittest pytest pip ensurepip "
    "venv idlelib http pydoc webbrowser IPython ipykernel jupyter bdb compileall zipapp sqlite3 "
    "asyncio test lib2to3 pyclbr site turtledemo"
)
_NODE: Final = Options(
    r"--(max-old-space-size|max-semi-space-size|stack-trace-limit)=\d+|--enable-source-maps"
    r"|--(no|trace)-(warnings|deprecation)|--trace-uncaught|--unhandled-rejections=\w+"
    r"|--use-(system|openssl|bundled)-ca|--dns-result-order=\w+|--disable-warning=\w+"
    r"|--experimental-(strip-types|transform-types|vm-modules|fetch|sqlite|websocket)"
    r"|--permission|--allow-fs-(read|write)=.*"
)
_DENO: Final = Options(
    r"-[AqRWNES]+|--quiet|--no-(prompt|check|lock|config|remote)|--cached-only|--frozen"
    r"|--(allow|deny)-(all|read|write|net|env|sys|import)(=.*)?|--unstable(-[a-z-]+)?"
    r"|--node-modules-dir(=\w+)?"
)
_JAVA: Final = Options(
    r"-X(mx|ms|ss|mn)\d+[kmgKMG]?|-XX:[+-]\w+|-XX:Max\w+=[\w.]+|-D[\w.]+(=.*)?|-server|-ea"
    r"|--enable-(preview|native-access=[\w.,-]+)|--add-(opens|exports)=[\w./=,-]+",
    {"-cp": ".+", "-classpath": ".+", "--class-path": ".+", "-jar": _PATH},
)
_NPX: Final = Options(
    r"-y|--yes|-q|--quiet|--no|--no-install|--prefer-offline|--offline|--ignore-scripts",
    {"-p": _PACKAGE, "--package": _PACKAGE},
)
_UV: Final = Options(
    r"-q|--quiet|-v|-n|--no-cache|--offline|--isolated|--refresh|--native-tls|--no-progress|--frozen"
    r"|--locked|--no-sync|--no-project|--no-dev|--all-extras|--no-config|--no-env-file"
    r"|--prerelease=\w+",
    {
        **dict.fromkeys(("--from", "--with", "--spec", "-w"), _PACKAGE),
        **dict.fromkeys(("-p", "--python"), rf"(python|cpython)?-?{_NUMBER}"),
        **dict.fromkeys(("--directory", "--project"), r"/.*"),
        **dict.fromkeys(("--extra", "--group"), r"[\w.-]+"),
    },
)
# Interpreters that take code in options; of these only what is harmless everywhere.
_OTHERS: Final = {
    "perl": Options(r"-[wWtT]+"),
    "ruby": Options(r"-w|-W\d?|-U"),
    "php": Options(r"-q|-n"),
    **dict.fromkeys(
        _words(
            "lua luajit r rscript julia tclsh wish guile racket sbcl clisp ecl scheme raku gjs qjs "
            "jjs groovy scala kotlin clojure clj bb erl escript elixir iex ghc runghc ocaml jshell "
            "irb ipython ts-node tsx babel-node coffee crystal nim v dart swift octave gnuplot"
        ),
        Options(),
    ),
}


def refuse_code(command: str, args: Sequence[str]) -> None:
    """Raise `RefusedCommand` for a command line that brings code, or another program, along."""
    if command.startswith("/"):
        if posixpath.normpath(command) != command:
            raise RefusedCommand("is a path with '.', '..' or '//' in it: write it out")
        if command.startswith(("/proc/", "/dev/", "/sys/")):
            raise RefusedCommand("is no program that stays the same: name its own file")
    name = known_name(command)
    if name in _SHELLS:
        raise RefusedCommand(
            "is a shell: name the program itself; a script can be named if it is executable"
        )
    if name in _STARTERS:
        raise RefusedCommand("is no server: it starts, fetches or changes others; name the program")
    for at, arg in enumerate(args):
        if _HOOK.match(arg):
            raise RefusedCommand("makes the program, or one that it starts, run a command", at)
    if (check := _CHECKS.get(name)) is not None:
        check(args)


def known_name(command: str) -> str:
    """Return the name that a program goes by, without its folder, suffix and version."""
    name = re.sub(r"\.(exe|cmd|bat|com|ps1|js)$", "", posixpath.basename(command).lower())
    return re.sub(r"(-cli)?([-.]?\d[\d.]*)?$", "", name) or name


_HOOK: Final = re.compile(
    r"--(upload|receive)-pack\b|-o\s*ProxyCommand|ProxyCommand=|ext::|--use-askpass|--to-command\b",
    re.IGNORECASE,
)


def _nested(command: str, args: Sequence[str], *, at: int) -> None:
    """Hold what a launcher starts to the same rules; ``at`` is where its arguments begin."""
    try:
        refuse_code(command, args)
    except RefusedCommand as error:
        raise error.after(at) from None


def _script(options: Options, args: Sequence[str]) -> None:
    """Take options, and then a file."""
    at = options.first_other(args)
    if at >= len(args) or args[at] == "-":
        raise RefusedCommand("is given no file to run: it would read code from its input")


def _python(args: Sequence[str]) -> None:
    options = [*_until(args, {"-m"})]
    at = _PYTHON.first_other(options)
    if at == len(options) < len(args):
        module = args[at + 1] if at + 1 < len(args) else ""
        if not re.fullmatch(r"[\w.]+", module) or module.partition(".")[0] in _CODE_MODULES:
            raise RefusedCommand("is no module of a server", min(at + 1, len(args) - 1))
        return
    _script(_PYTHON, args)


def _until(args: Sequence[str], ends: set[str]) -> Sequence[str]:
    return args[: next((at for at, arg in enumerate(args) if arg in ends), len(args))]


def _node(args: Sequence[str]) -> None:
    _script(_NODE, args)
    at = _NODE.first_other(args)
    if args[at] == "inspect":
        raise RefusedCommand("starts a debugger", at)


def _deno(args: Sequence[str]) -> None:
    if not args or args[0] not in {"run", "serve"}:
        raise RefusedCommand("is run as `deno run FILE`, and in no other way", 0 if args else None)
    at = _DENO.first_other(args, 1)
    if at >= len(args) or not re.fullmatch(rf"(npm|jsr):/?{_PACKAGE}(/[\w./-]+)?|[^-:]+", args[at]):
        raise RefusedCommand("is given no file or package to run", min(at, len(args) - 1))


def _java(args: Sequence[str]) -> None:
    at = _JAVA.first_other(args)
    if at < len(args) and args[at].startswith("@"):
        raise RefusedCommand("reads options from a file", at)


def _package(options: Options, words: Sequence[str], args: Sequence[str]) -> None:
    """Take what comes before the words of a launcher's command, then options, then a package."""
    at = options.first_other(args)
    if words:
        if list(args[at : at + len(words)]) != list(words):
            raise RefusedCommand(
                f"is used as `{' '.join(words)} PACKAGE`, and in no other way",
                min(at, len(args) - 1) if args else None,
            )
        at = options.first_other(args, at + len(words))
    if at >= len(args) or not re.fullmatch(_PACKAGE, args[at]):
        raise RefusedCommand(
            "is no name of a package of a registry", min(at, len(args) - 1) if args else None
        )
    if not args[at].startswith("@"):  # what a scope publishes has its own name for it
        _nested(re.split(r"[@=<>~\[]", args[at])[0], args[at + 1 :], at=at + 1)


def _npm(args: Sequence[str]) -> None:
    words = ("x",) if "x" in args[:4] and "exec" not in args[:4] else ("exec",)
    _package(_NPX, words, args)


def _bun(args: Sequence[str]) -> None:
    if args and args[0] == "x":
        _package(_NPX, ("x",), args)
    elif args and args[0] == "run":
        _script(Options(), args[1:])
    else:
        _script(Options(), args)


def _uv(args: Sequence[str]) -> None:
    at = _UV.first_other(args)
    if list(args[at : at + 1]) != ["run"]:
        _package(_UV, ("tool", "run"), args)
        return
    at = _UV.first_other([*_until(args, {"-m", "--module"})], at + 1)
    if at < len(args) and args[at] in {"-m", "--module"}:
        _nested("python", ["-m", *args[at + 1 :]], at=at)
    elif at >= len(args) or args[at] == "-" or "://" in args[at]:
        raise RefusedCommand("is given no file or program to run", min(at, len(args) - 1))
    else:
        _nested(args[at], args[at + 1 :], at=at + 1)


_CHECKS: Final[dict[str, Check]] = {
    **{name: partial(_script, options) for name, options in _OTHERS.items()},
    **dict.fromkeys(("python", "pypy", "pythonw", "micropython", "jython"), _python),
    **dict.fromkeys(("node", "nodejs", "electron"), _node),
    "deno": _deno,
    "bun": _bun,
    **dict.fromkeys(("java", "javaw"), _java),
    **dict.fromkeys(("npx", "pnpx", "bunx"), partial(_package, _NPX, ())),
    "npm": _npm,
    **dict.fromkeys(("pnpm", "yarn"), partial(_package, _NPX, ("dlx",))),
    "uvx": partial(_package, _UV, ()),
    "uv": _uv,
    "pipx": partial(_package, _UV, ("run",)),
    **dict.fromkeys(("docker", "podman", "nerdctl"), refuse_way_out),
}
