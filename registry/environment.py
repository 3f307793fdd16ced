"""Which environment variables nobody may give to a server's process.

Each of these makes some program load code, or run a command, before or instead of its own. An
operator who wants that says so in ``command`` and ``args``, where a reader of the definition sees
it. What merely configures a program (PATH, HOME, proxies, locales, CA bundles) is free.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

MARK_VARIABLE: Final = "TOOLFLEET_SESSION"
"""Ours, in every child: names the worker process and the session that it belongs to."""

_REFUSED_PREFIXES: Final = (
    "LD_",  # the dynamic linkers of Linux and macOS
    "DYLD_",
    "BASH_FUNC_",  # a function that bash takes for a command
    "GIT_CONFIG_",  # any setting of git, and several of them are commands
    "CORECLR_",
    "TOOLFLEET_",
)
_LOADERS: Final = {
    "C libraries": "GCONV_PATH GLIBC_TUNABLES OPENSSL_CONF OPENSSL_ENGINES OPENSSL_MODULES",
    "shells": "BASH_ENV ENV SHELLOPTS BASHOPTS PS4 PROMPT_COMMAND ZDOTDIR",
    "Python": "PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONINSPECT PYTHONBREAKPOINT "
    "PYTHONEXECUTABLE PYTHONPLATLIBDIR PYTHONUSERBASE PYTHONWARNINGS PYTHONPYCACHEPREFIX",
    "Node": "NODE_OPTIONS NODE_PATH NODE_REPL_EXTERNAL_MODULE",
    "Perl": "PERL5OPT PERL5LIB PERLLIB PERL5DB",
    "Ruby and PHP": "RUBYOPT RUBYLIB PHPRC PHP_INI_SCAN_DIR",
    "Java and .NET": "JAVA_TOOL_OPTIONS JDK_JAVA_OPTIONS _JAVA_OPTIONS CLASSPATH "
    "DOTNET_STARTUP_HOOKS",
    "Lua and R": "LUA_INIT LUA_PATH LUA_CPATH R_PROFILE R_PROFILE_USER R_ENVIRON R_ENVIRON_USER",
    "git": "GIT_SSH GIT_SSH_COMMAND GIT_PROXY_COMMAND GIT_EXTERNAL_DIFF GIT_ASKPASS GIT_EDITOR "
    "GIT_SEQUENCE_EDITOR GIT_PAGER GIT_EXEC_PATH GIT_TEMPLATE_DIR",
    "whoever asks for a helper": "SSH_ASKPASS EDITOR VISUAL PAGER MANPAGER BROWSER LESSOPEN "
    "LESSCLOSE",
}
_REFUSED: Final = frozenset(name for names in _LOADERS.values() for name in names.split())
_NAME: Final = re.compile(r"[^=\0]+")


def refuse_variables(names: Iterable[str]) -> None:
    """Raise `ValueError`, naming it, for a variable that a definition may not set."""
    for name in names:
        # `LD_PRELOAD=/x` as a name, with any value, would set LD_PRELOAD.
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an environment variable")
        if name in _REFUSED or name.startswith(_REFUSED_PREFIXES):
            raise ValueError(
                f"the environment variable {name} is refused: it makes programs load code or run "
                "commands of its own; say it in command and args instead"
            )
