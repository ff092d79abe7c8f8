#!/usr/bin/env python3
"""Looks for what pip cannot install, before `make setup`; says what to do about each thing missing.

Runs in the system's Python, so it uses the standard library only and keeps to old syntax. Prints
the extras of pyproject.toml that this machine needs for simulation to stdout ("sim", or "sim,zig"
without a C++ compiler); all else to stderr.
"""
import ctypes
import importlib.util
import os
import shutil
import sys
import sysconfig

MINIMUM = (3, 11)


def shared_libpython():
    """Whether this Python exists as a shared library, which cocotb loads into the simulator."""
    names = {sysconfig.get_config_var(name) for name in ("INSTSONAME", "LDLIBRARY")}
    names = {name for name in names if name and ".so" in name}
    names.add("libpython%d.%d.so.1.0" % sys.version_info[:2])
    folders = [sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL"),
               os.path.join(sys.base_prefix, "lib"), None]      # None: the loader's own search
    for folder in folders:
        for name in names:
            try:
                ctypes.CDLL(os.path.join(folder, name) if folder else name)
                return True
            except OSError:
                pass
    return False


def missing():
    """One sentence for each thing that has to be installed by hand."""
    version = "%d.%d" % sys.version_info[:2]
    if sys.version_info < MINIMUM:
        return ["Python %s is too old: install Debian package python3.11 or newer, or run "
                "`make PYTHON=/path/to/python3.11 ...`." % version]
    found = []
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        found.append("Python's venv module is missing: install Debian package python3-venv.")
    if not shared_libpython():
        found.append("Python's shared library is missing: install Debian package libpython%s."
                     % version)
    return found


def main():
    problems = missing()
    for problem in problems:
        print("setup: " + problem, file=sys.stderr)
    if problems:
        return 1
    if os.environ.get("CXX") or any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        print("sim")
    else:
        print("setup: no C++ compiler found, so the one in PyPI's ziglang will be used; Debian "
              "package g++ builds twice as fast.", file=sys.stderr)
        print("sim,zig")
    return 0


if __name__ == "__main__":
    sys.exit(main())
