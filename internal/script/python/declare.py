# Runs the top level of a test file, and says what it declares. The library comes over standard
# input, as a line: nothing of it is left on the host. It runs nothing until a second line comes.
import sys
if sys.path[0] == "":
    del sys.path[0]  # what lies in the current directory is no library of Python's
import importlib.abc, importlib.util, json, os, re
library = json.loads(sys.stdin.buffer.readline())
class Library(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        for file in (name.replace(".", "/") + "/__init__.py", name.replace(".", "/") + ".py"):
            if file in library:
                return importlib.util.spec_from_loader(name, self, origin="<attest>/" + file, is_package=file.endswith("__init__.py"))
    def exec_module(self, module):
        origin = module.__spec__.origin
        module.__file__ = origin
        exec(compile(library[origin[len("<attest>/"):]], origin, "exec", dont_inherit=True), module.__dict__)
sys.meta_path.append(Library())
script, machines, memory = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
from test_driver import _declare
from test_driver.driver import early_symbols
from test_driver import _memory
if not sys.stdin.buffer.readline():
    os._exit(0)
answer = os.fdopen(os.dup(1), "w")
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0)
os.dup2(null, 1)
sys.argv = [script]
sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
_memory.limit(memory)
result = _declare.load(script, early_symbols(machines))
answer.write(json.dumps(result))
answer.close()
os._exit(0)
