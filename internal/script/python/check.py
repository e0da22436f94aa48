import json, os, symtable, sys
out = {"version": "%d.%d.%d" % sys.version_info[:3], "errors": [], "executable": sys.executable,
       "environ": {k: v for k, v in os.environ.items() if k.startswith(("PYTHON", "LD_"))}}
def done():
    print(json.dumps(out))
    sys.exit()
if sys.version_info < (3, 9):
    done()
path, known = sys.argv[1], set(json.loads(sys.argv[2]))
import ast, builtins, warnings
warnings.simplefilter("ignore")
source = sys.stdin.buffer.read()
def bad(line, column, message, text=None):
    out["errors"].append({"line": line or 0, "column": column or 0, "message": message, "text": text or ""})
try:
    tree = ast.parse(source, path)
    compile(source, path, "exec", dont_inherit=True)
except SyntaxError as e:
    bad(e.lineno, e.offset, e.msg, (e.text or "").rstrip("\n"))
    done()
except (ValueError, UnicodeDecodeError, RecursionError, MemoryError) as e:
    bad(0, 0, str(e) or type(e).__name__)
    done()

# A test file declares machines at its top level, or has tests and does nothing itself. Any
# other file is a script, which may call functions of its own test_….
def statements(body):
    for n in body:
        if not isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield n
            yield from statements(ast.iter_child_nodes(n))
test_file = any(isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "machine" for n in statements(tree.body))
if not test_file and any(isinstance(n, ast.FunctionDef) and n.name.startswith("test_") for n in tree.body):
    passive = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    test_file = all(isinstance(n, passive) or isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in tree.body)
if test_file:
    known |= {"machine", "debian", "rootfs", "disk", "network"}

# Names that nothing defines. A script that makes names in ways that cannot be seen is left alone.
star = any(isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names) for n in ast.walk(tree))
dynamic = any(isinstance(n, ast.Name) and n.id in ("globals", "exec", "vars", "locals", "eval") for n in ast.walk(tree))
defined = set(dir(builtins)) | known | {"copyright", "credits", "exit", "help", "license", "quit", "__file__", "__name__", "__builtins__", "__annotations__", "test_script", "run_tests"}
try:
    table = symtable.symtable(source.decode("utf-8-sig"), path, "exec")
except Exception:
    table = None
if table is not None and not star and not dynamic:
    missing = set()
    def globals_of(t):
        for s in t.get_symbols():
            if s.is_assigned() or s.is_imported():
                if t is table or s.is_declared_global():
                    defined.add(s.get_name())
        for c in t.get_children():
            if t is table:
                defined.add(c.get_name())
            globals_of(c)
    def uses(t):
        for s in t.get_symbols():
            if s.is_referenced() and (s.is_global() or t is table) and s.get_name() not in defined:
                missing.add(s.get_name())
        for c in t.get_children():
            uses(c)
    globals_of(table)
    uses(table)
    guarded = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.Try):
            for h in n.handlers:
                for x in ast.walk(h.type) if h.type else [ast.Name(id="NameError")]:
                    if isinstance(x, ast.Name) and x.id in ("NameError", "Exception", "BaseException"):
                        guarded.update(m.id for b in n.body for m in ast.walk(b) if isinstance(m, ast.Name))
    lines = source.decode("utf-8", "replace").splitlines()
    for n in ast.walk(tree):
        if isinstance(n, ast.Name) and n.id in missing and n.id not in guarded:
            bad(n.lineno, n.col_offset + 1, "name " + repr(n.id) + " is not defined", lines[n.lineno - 1])
            out["errors"][-1]["name"] = n.id
            missing.discard(n.id)
    out["errors"].sort(key=lambda e: (e["line"], e["column"]))

# Operations where the machine is certain: those that do not exist, and the calls of all others,
# for what a machine cannot do. What stands in try or in assertRaises may fail.
if len(sys.argv) > 3:
    machines, operations = json.loads(sys.argv[3])
    stores = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, (ast.Store, ast.Del))]
    stores += [n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)]
    declared = [n.targets[0].id for n in tree.body
                if test_file and isinstance(n, ast.Assign) and len(n.targets) == 1 and isinstance(n.targets[0], ast.Name)
                and isinstance(n.value, ast.Call) and isinstance(n.value.func, ast.Name) and n.value.func.id == "machine"]
    certain = {m for m in machines if m not in stores} | {m for m in declared if stores.count(m) == 1}
    lines = source.decode("utf-8", "replace").splitlines()
    def may_fail(n):
        if isinstance(n, ast.Try):
            return n.body if n.handlers else []
        if isinstance(n, ast.With) and any(isinstance(x, ast.Attribute) and x.attr.startswith("assertRaises") for i in n.items for x in ast.walk(i.context_expr)):
            return n.body
        return []
    caught = {id(x) for n in ast.walk(tree) for b in may_fail(n) for x in ast.walk(b)}
    out["calls"] = []
    for n in ast.walk(tree):
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and isinstance(n.func.value, ast.Name) and n.func.value.id in certain:
            who, what, line = n.func.value.id, n.func.attr, n.func.lineno
            column = n.func.end_col_offset - len(what.encode()) + 1
            if what not in operations:
                bad(line, column, "a machine has no operation " + what, lines[line - 1])
                out["errors"][-1]["operation"] = what
            elif id(n) not in caught:
                out["calls"].append({"machine": who, "operation": what, "line": line, "column": column, "text": lines[line - 1]})
def title(node):
    doc = ast.get_docstring(node)
    return doc.strip().splitlines()[0] if doc and doc.strip() else ""
out["title"] = title(tree)
out["functions"] = [
    {"name": n.name, "line": n.lineno, "title": title(n),
     "required": [a.arg for a in (n.args.posonlyargs + n.args.args)[:len(n.args.posonlyargs + n.args.args) - len(n.args.defaults)]]
     + [a.arg for a, d in zip(n.args.kwonlyargs, n.args.kw_defaults) if d is None]}
    for n in tree.body if isinstance(n, ast.FunctionDef)
]
out["declares"] = test_file
done()
