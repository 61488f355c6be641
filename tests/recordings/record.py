#!/usr/bin/env python3
"""Records what an editor does to a directory while it saves a file, as this directory's README describes.

    record.py vim-rename|vim-copy|vim-auto|emacs [OUT]

Needs strace and the editor. Works in a directory of its own, as any user, and reads none of the user's settings.
"""

import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile

SAVED = "main.rs"
# Not a round number of any editor's buffers.
BASE = b"".join(b"// line %d\n" % n for n in range(1, 2500))
LINE = b"// one more\n"
SAVES = 2

VIM = """set {options} writebackup nobackup backupskip=
{steps}
call filereadable('/recording/quit')
quit
"""
VIM_STEP = """call filereadable('/recording/edit')
call append(0, '{line}')
call filereadable('/recording/save')
write
"""
# Emacs makes no backups in a directory for temporary files, which this one is, unless it is told to.
EMACS = """(setq backup-enable-predicate #'always)
(defun step ()
  (file-exists-p "/recording/edit")
  (goto-char (point-min))
  (insert "{line}\\n")
  (do-auto-save t t)
  (file-exists-p "/recording/save")
  (save-buffer))
(file-exists-p "/recording/open")
(find-file "{saved}")
(dotimes (_ {saves}) (step))
(file-exists-p "/recording/quit")
(kill-emacs)
"""
CALLS = "open,openat,creat,close,write,pwrite64,lseek,ftruncate,truncate,fsync,fdatasync,rename,renameat,renameat2," \
    "unlink,unlinkat,symlink,symlinkat,link,linkat,chmod,fchmod,fchmodat,utimensat,setxattr,fsetxattr,mkdir,rmdir," \
    "stat,newfstatat,access,faccessat,faccessat2"


def editor(kind):
    """The command, its script, what people who use it have git ignore, and how it names itself."""
    if kind == "emacs":
        script = EMACS.format(line=LINE.decode().rstrip(), saved=SAVED, saves=SAVES)
        return ["emacs", "-Q", "-nw", "-l", "script"], script, ["*~", "\\#*#", ".#*"]
    options = {"vim-rename": "backupcopy=no", "vim-copy": "backupcopy=yes", "vim-auto": "backupcopy=auto"}[kind]
    steps = VIM_STEP.format(line=LINE.decode().rstrip()) * SAVES
    script = VIM.format(options=options, steps=steps)
    return ["vim", "-N", "-u", "NONE", "-i", "NONE", "-S", "script", SAVED], script, ["*.swp"]


def run(command, directory, home, log):
    """Runs an editor on a terminal of its own until it ends."""
    strace = ["strace", "-f", "-y", "-xx", "-s", "100000", "-e", f"trace={CALLS}", "-o", log]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(directory)
        environment = {"HOME": home, "TERM": "xterm", "LC_ALL": "C", "PATH": os.environ["PATH"]}
        os.execvpe("strace", strace + command, environment)
    while True:
        try:
            if not os.read(terminal, 65536):
                break
        except OSError:
            break
    os.waitpid(child, 0)


def unhex(text):
    return re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m.group(1), 16)]), text.encode("latin-1"))


def calls(log):
    """Every finished call that succeeded or asked for a marker: name, arguments, result."""
    halves = {}
    for line in open(log, encoding="latin-1"):
        process, rest = line.rstrip("\n").split(None, 1)
        if rest.endswith("<unfinished ...>"):
            halves[process] = rest[: -len("<unfinished ...>")].rstrip()
            continue
        resumed = re.match(r"<\.\.\. \w+ resumed>(.*)", rest)
        if resumed:
            rest = halves.pop(process, "") + resumed.group(1)
        match = re.match(r"(\w+)\((.*)\)\s+= (-?\d+)", rest)
        if match:
            yield match.group(1), split(match.group(2)), int(match.group(3))


def split(arguments):
    """Splits at commas outside of strings and brackets; strings and descriptors' paths become bytes."""
    return [part.strip() for part in re.findall(r'(?:"[^"]*"|\[[^\]]*\]|\{[^}]*\}|<[^>]*>|[^,"\[{<])+', arguments)]


def text(argument):
    return unhex(argument[1 : argument.rindex('"')]) if argument.startswith('"') else b""


class Recording:
    def __init__(self, directory):
        self.directory = os.fsencode(directory)
        self.lines = []
        self.handles = {}
        self.at = {}
        self.saves = 0
        self.count = 0
        self.section = None

    def name(self, path):
        """The path below the directory, with FILE for the saved file's name; None elsewhere."""
        path = os.path.normpath(os.path.join(self.directory, path))
        if os.path.dirname(path) != self.directory or path.endswith(b"/script"):
            return None
        return os.fsdecode(os.path.basename(path)).replace(SAVED, "FILE")

    def contents(self, back=0):
        return LINE * max(0, self.saves - back) + BASE

    def what(self, data, at):
        """Whose bytes these are."""
        for word, content in [("new", self.contents()), ("old", self.contents(1))]:
            if content[at : at + len(data)] == data:
                return word
        return "other"

    def begin(self, section):
        if section == self.section and section != "save":
            return
        self.section = section
        self.lines.append("")
        if section == "edit":
            self.saves += 1
        sizes = f" {len(self.contents(1))} {len(self.contents())}" if section == "save" else ""
        self.lines.append(f"[{section}{sizes}]")

    def say(self, *words):
        if self.section is None:
            self.begin("open")
        self.lines.append(" ".join(str(word) for word in words))

    def take(self, call, arguments, result):
        marker = next((text(a) for a in arguments if text(a).startswith(b"/recording/")), None)
        if marker:
            section = marker.split(b"/")[2].decode()
            if section != self.section:
                self.begin(section)
            return
        if result < 0:
            return
        descriptor = arguments[0].split("<")[0] if arguments else ""
        handle = self.handles.get(descriptor)
        paths = [self.name(text(a)) for a in arguments if a.startswith('"')]
        if call in ("open", "openat", "creat"):
            self.open(arguments, result, paths[0])
        elif call in ("write", "pwrite64") and handle:
            data = text(arguments[1])[:result]
            at = int(arguments[3]) if call == "pwrite64" else self.at[handle]
            self.at[handle] = at + result if call == "write" else self.at[handle]
            self.say("write", handle, at, result, self.what(data, at))
        elif call == "lseek" and handle:
            self.at[handle] = result
        elif call == "ftruncate" and handle:
            self.say("truncate", handle, arguments[1])
        elif call in ("fsync", "fdatasync") and handle:
            self.say("fsync", handle)
        elif call == "fchmod" and handle:
            self.say("fchmod", handle, f"{int(arguments[1], 8) & 0o7777:o}")
        elif call == "close" and handle:
            self.say("close", handle)
            del self.handles[descriptor]
        elif call.startswith(("rename", "link")) and all(paths):
            self.say("rename" if call.startswith("rename") else "link", *paths)
        elif call.startswith("symlink") and paths[-1]:
            # Who, where and which process is nobody's business.
            self.say("symlink", "somebody@host.4711:1700000000", paths[-1])
        elif call.startswith("unlink") and paths[0]:
            self.say("unlink", paths[0])
        elif call in ("chmod", "fchmodat") and paths[0]:
            mode = arguments[1] if call == "chmod" else arguments[2]
            self.say("chmod", paths[0], f"{int(mode, 8) & 0o7777:o}")
        elif call == "utimensat" and paths and paths[0]:
            self.say("utimens", paths[0])
        elif call == "setxattr" and paths[0]:
            self.say("setxattr", paths[0])

    def open(self, arguments, result, name):
        flags = next((a for a in arguments if a.startswith("O_")), "").split("|")
        if not name or "O_PATH" in flags or not {"O_WRONLY", "O_RDWR", "O_CREAT"} & set(flags):
            return
        self.count += 1
        self.handles[str(result)] = self.count
        self.at[self.count] = 0
        words = {"O_CREAT": "create", "O_EXCL": "new", "O_TRUNC": "empty"}
        how = [word for flag, word in words.items() if flag in flags]
        mode = f"{int(arguments[-1], 8) & 0o7777:o}" if "O_CREAT" in flags else "0"
        self.say("open", self.count, name, mode, *how)


def main():
    kind = sys.argv[1]
    work = tempfile.mkdtemp(prefix="recording-")
    directory, home, log = (os.path.join(work, name) for name in ("dir", "home", "log"))
    os.umask(0o022)
    os.mkdir(directory)
    os.mkdir(home)
    command, script, ignored = editor(kind)
    with open(os.path.join(directory, SAVED), "wb") as file:
        file.write(BASE)
    with open(os.path.join(directory, "script"), "w", encoding="ascii") as file:
        file.write(script)
    run(command, directory, home, log)
    recording = Recording(directory)
    for call, arguments, result in calls(log):
        recording.take(call, [a if not re.match(r"\d+<", a) else a.split("<")[0] for a in arguments], result)
    with open(os.path.join(directory, SAVED), "rb") as file:
        assert file.read() == recording.contents(), "the editor did not do what it was told"
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    lines = [f"# {version}", f"# made by record.py {kind}", *(f"ignore {pattern}" for pattern in ignored)]
    out = open(sys.argv[2], "w", encoding="ascii") if len(sys.argv) > 2 else sys.stdout
    out.write("\n".join(lines + recording.lines) + "\n")
    shutil.rmtree(work)


main()
