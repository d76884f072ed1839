"""What SECURITY.md says of reading: no code of a model's repository is run, and no pickle of a stranger is loaded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("actors", "agent", "conf", "learner", "retrieval_service", "tasks", "tracking")
FILES = [ROOT / "launch.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
NEVER = {
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "yaml.load",
    "yaml.unsafe_load",
    "os.system",
    "pd.read_pickle",
}


WORDS = re.compile(
    r"\b(eval|exec)\s*\(|pickle|joblib|yaml|os\.system|trust_remote_code|\bAuto|(np|numpy|torch)\.load|ForCausalLM|shell"
)
"""A source without any of these calls nothing of all that, and is not parsed."""


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(source: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each call's name and its keyword arguments as they are written."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield dotted(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}


def unsafe(source: str) -> list[str]:
    if not WORDS.search(source):
        return []
    found = []
    for name, arguments in calls(source):
        if name in NEVER:
            found.append(name)
        # Left out, transformers asks whoever sits at the terminal.
        reads = name.startswith("Auto") and name.endswith((".from_pretrained", ".from_config"))
        if arguments.get("trust_remote_code", "" if reads else "False") != "False":
            found.append(f"{name}(trust_remote_code)")
        if name in ("np.load", "numpy.load") and arguments.get("allow_pickle", "False") != "False":
            found.append(f"{name}(allow_pickle)")
        if name == "torch.load" and arguments.get("weights_only") != "True":
            found.append(name)
        tensors = arguments.get("use_safetensors") == "True" or "gguf_file" in arguments  # neither unpickles
        if name.endswith("ForCausalLM.from_pretrained") and not tensors:
            found.append(f"{name} of any file")
        if arguments.get("shell", "False") != "False":
            found.append(f"{name}(shell)")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust)",
        "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)",
        "AutoConfig.from_pretrained(path)",
        "AutoModelForCausalLM.from_config(config)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_what_would_be_found(source):
    assert unsafe(source)


def test_the_product_does_none_of_it_with_a_file():
    found = {
        str(path.relative_to(ROOT)): names for path in FILES if (names := unsafe(path.read_text(encoding="utf-8")))
    }
    # Groups between the actors of one run, from Ray's object store; Ray does the same with every message of theirs.
    assert found == {"actors/payloads.py": ["pickle.loads"]}
