#!/usr/bin/env python3
"""Records samples of RULER's own generators, for tests/study/ruler_test.cpp.

    pip install numpy scipy tqdm wonderwords==3.0.1
    git clone https://github.com/NVIDIA/RULER
    python3 scripts/record_ruler.py RULER LICENSE tests/data/ruler.jsonl

The generators run as they are, with three stand-ins, so that no download and no model is needed: words and punctuation
marks count as tokens; the essay is the given text; a sentence ends at a mark of . ! ? before a space. A line of the
result is one sample: task, max_seq_length, input (with the answer's prefix), outputs.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

STAND_INS = {
    "tokenizer.py": """
import re
class Words:
    def text_to_tokens(self, text): return re.findall(r"\\w+|[^\\w\\s]", text)
def select_tokenizer(kind, path): return Words()
""",
    "nltk/__init__.py": "",
    "nltk/tokenize.py": """
import re
def sent_tokenize(text): return re.split(r"(?<=[.!?]) ", text)
""",
}

NEEDLE = ["type_haystack", "type_needle_k", "type_needle_v", "num_needle_k", "num_needle_v", "num_needle_q"]


def niah(*values):
    return "niah", dict(zip(NEEDLE, values))


# As scripts/synthetic.yaml has them; lengths as short as the generators allow.
TASKS = {
    "niah_single_1": (niah("noise", "words", "numbers", 1, 1, 1), 400),
    "niah_single_2": (niah("essay", "words", "numbers", 1, 1, 1), 900),
    "niah_single_3": (niah("essay", "words", "uuids", 1, 1, 1), 900),
    "niah_multikey_1": (niah("essay", "words", "numbers", 4, 1, 1), 1000),
    "niah_multikey_2": (niah("needle", "words", "numbers", 1, 1, 1), 400),
    "niah_multikey_3": (niah("needle", "uuids", "uuids", 1, 1, 1), 600),
    "niah_multivalue": (niah("essay", "words", "numbers", 1, 4, 1), 1000),
    "niah_multiquery": (niah("essay", "words", "numbers", 1, 1, 4), 1000),
    "vt": (("variable_tracking", {"type_haystack": "noise", "num_chains": 1, "num_hops": 4}), 900),
    "cwe": (("common_words_extraction", {"freq_cw": 30, "freq_ucw": 3, "num_cw": 10}), 900),
    "cwe_long": (("common_words_extraction", {"freq_cw": 30, "freq_ucw": 3, "num_cw": 10}), 4096),
    "fwe": (("freq_words_extraction", {"alpha": 2.0}), 1000),
}


def main():
    checkout, essay, target = map(pathlib.Path, sys.argv[1:4])
    with tempfile.TemporaryDirectory() as name:
        work = pathlib.Path(name)
        for path, text in STAND_INS.items():
            (work / path).parent.mkdir(exist_ok=True)
            (work / path).write_text(text)
        data = work / "data"
        shutil.copytree(checkout / "scripts" / "data", data)
        (data / "tokenizer.py").unlink()
        texts = data / "synthetic" / "json"
        (texts / "PaulGrahamEssays.json").write_text(json.dumps({"text": essay.read_text()}))
        (texts / "english_words.json").write_text("{}")  # of texts longer than these
        sys.path.insert(0, str(data / "synthetic"))
        from constants import TASKS as constants

        lines = []
        for task, ((kind, options), length) in TASKS.items():
            template = constants[kind]["template"] + constants[kind]["answer_prefix"]
            arguments = {"save_dir": work, "save_name": task, "tokenizer_path": "none", "max_seq_length": length,
                         "tokens_to_generate": constants[kind]["tokens_to_generate"], "num_samples": 1,
                         "template": template, **options}
            command = [sys.executable, str(data / "synthetic" / f"{kind}.py")]
            for key, value in arguments.items():
                command += [f"--{key}", str(value)]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL,
                           env={**os.environ, "PYTHONPATH": f"{work}"})
            sample = json.loads((work / task / "validation.jsonl").read_text())
            lines.append(json.dumps({"task": re.sub("_long$", "", task), "max_seq_length": length,
                                     "input": sample["input"] + sample["answer_prefix"],
                                     "outputs": sample["outputs"]}))
    target.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
