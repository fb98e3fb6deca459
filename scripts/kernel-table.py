#!/usr/bin/env python3
"""What nvcc makes of each CUDA kernel, as a table: registers, spills, stack, shared memory, most threads of a block, and from the SASS how
many loads of device memory are under way at once in the inner loop that loads most.

  scripts/kernel-table.py              writes docs/cuda-kernels.tsv
  scripts/kernel-table.py --check      compares with it instead; exit 1 where a kernel got worse, or is not in it
  scripts/kernel-table.py --diff       compares, line by line, and says what changed in either direction

  --arch LIST      compute capabilities (default 80,90,120)
  --only LIST      of these sources, as quant_dot,attention; what others hold stays in the table as it is
  --nvcc FILE, --nvdisasm FILE   default: on the PATH, in /usr/local/cuda/bin, in this Python's packages. Without nvdisasm
                   (package nvidia-cuda-nvdisasm) the last three columns stay as they are in the table
  --jobs N         compilers at once (default: one a core)

Worse is: no wait for the kernels ahead (9.0 and newer), stack or spills that were not there, more static shared memory than 48 KiB, another bound on threads, a block that does not fit
into the registers of a multiprocessor; with the compiler that the table names also more registers than 8 above the table's, or fewer loads
under way. An architecture that the table lacks is held to 9.0's lines in all but registers and loads. Exit 77 where there is no nvcc.
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "cuda-kernels.tsv"
COLUMNS = ["kernel", "arch", "registers", "spilled", "stack", "shared", "threads", "loads", "in_flight", "bytes_in_flight"]
STATIC_SHARED = 48 << 10
REGISTERS = 65536  # of a multiprocessor, all capabilities
SPARE_REGISTERS = 8
DEPENDENT_LAUNCH = 90  # from here on kernels are launched before those ahead have ended
STAND_IN = "90"  # whose lines count for an architecture that the table lacks, but for registers and loads


def tool(name, given):
    if given:
        return given
    places = [pathlib.Path("/usr/local/cuda/bin") / name]
    for folder in sys.path:  # of the Python packages nvidia-cuda-*
        places += sorted(pathlib.Path(folder).glob(f"nvidia/cu*/bin/{name}"))
    return shutil.which(name) or next((str(p) for p in places if p.exists()), None)


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"kernel-table.py: {' '.join(command[:1])} failed:\n{done.stderr}")
    return done.stdout + done.stderr


def short_name(demangled):
    """foretoken::cuda::(anonymous namespace)::cuda_quant_dot<(foretoken::WeightType)12, 4>(Arguments) -> cuda_quant_dot<12, 4>"""
    name = re.sub(r"\(anonymous namespace\)::|\b[A-Za-z_]\w*::", "", demangled.strip())
    name = re.sub(r"^(void|__global__)\s+", "", name)
    name = re.sub(r"\((?:[A-Za-z_]\w*)\)(-?\d)", r"\1", name)  # casts of template arguments
    depth = 0
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return name[:i].replace("\t", " ")
    return name


def demangle(names):
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.split("\n")
    return dict(zip(names, out))


# ---- SASS ----

LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);")
LABEL = re.compile(r"^(\.L_\w+):")
REGISTER = re.compile(r"(?<![UP\w])R(\d+)(\.64)?")


def load_words(opcode):
    if ".128" in opcode:
        return 4
    return 2 if ".64" in opcode else 1


def load_bytes(opcode):
    for suffix, size in ((".U8", 1), (".S8", 1), (".U16", 2), (".S16", 2)):
        if suffix in opcode:
            return size
    return 4 * load_words(opcode)


def loops_of(code):
    """Innermost loops as [first, last] indices: from the target of a backward branch to the branch, with no other inside."""
    labels, lines = {}, []
    for text in code:
        label = LABEL.match(text)
        if label:
            labels[label.group(1)] = len(lines)
            continue
        line = LINE.match(text)
        if line:
            lines.append((line.group(2), line.group(3)))
    spans = []
    for i, (opcode, operands) in enumerate(lines):
        if not opcode.startswith("BRA"):
            continue
        target = re.search(r"(\.L_\w+)", operands)
        if target and labels.get(target.group(1), i + 1) <= i and labels[target.group(1)] != i:
            spans.append((labels[target.group(1)], i))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return lines, inner


def copies_in_flight(lines, first, last):
    """The same of copies to shared memory (cp.async) that lines[first..last], a loop, starts and waits for by groups: all are under way
    but those of the groups that have arrived."""
    sizes = [load_bytes(opcode) for opcode, _ in lines[first : last + 1] if opcode.startswith("LDGSTS")]
    groups = sum(opcode == "LDGDEPBAR" for opcode, _ in lines[first : last + 1])
    waits = [int(m.group(1), 16) for opcode, operands in lines[first : last + 1] if opcode.startswith("DEPBAR")
             for m in [re.search(r"SB0, (0x[0-9a-f]+)", operands)] if m]
    if not sizes or not groups or not waits:
        return 0, 0, 0
    most = len(sizes) * (min(waits) + 1) // groups
    return most, most, most * max(sizes)


def in_flight(lines, first, last):
    """Loads of device memory in lines[first..last], most of them under way before one is needed, and their bytes."""
    copies = copies_in_flight(lines, first, last)
    if copies[0] > 0:
        return copies
    waiting, count, most, most_bytes = [], 0, 0, 0  # of (registers, bytes), oldest first
    for opcode, operands in lines[first : last + 1]:
        registers = [int(m.group(1)) + k for m in REGISTER.finditer(operands) for k in range(2 if m.group(2) else 1)]
        is_load = opcode.startswith(("LDG.", "LD."))  # LD: the compiler does not know which memory it is
        sources = registers[1:] if registers and not opcode.startswith(("ST", "BRA", "RED")) else registers
        needed = [i for i, (held, _) in enumerate(waiting) if any(r in held for r in sources)]
        if needed:
            waiting = waiting[max(needed) + 1 :]
        if is_load and registers:
            count += 1
            waiting.append((range(registers[0], registers[0] + load_words(opcode)), load_bytes(opcode)))
            most = max(most, len(waiting))
            most_bytes = max(most_bytes, sum(size for _, size in waiting))
    return count, most, most_bytes


def sass(nvdisasm, cubin):
    found, name, code = {}, None, []
    for text in run([nvdisasm, "-c", str(cubin)]).split("\n") + [".section\t.text.end,"]:
        section = re.match(r"\s*\.section\s+\.text\.(\w+)", text)
        if not section:
            code.append(text)
            continue
        if name:
            lines, inner = loops_of(code)
            # Without a loop: the whole kernel.
            spans = inner or ([(0, len(lines) - 1)] if lines else [])
            found[name] = max((in_flight(lines, *span) for span in spans), default=(0, 0, 0), key=lambda f: (f[0], f[1]))
            if found[name][0] == 0 and lines:
                found[name] = in_flight(lines, 0, len(lines) - 1)
        name, code = section.group(1), []
    return found


# ---- ptxas ----


def compile_one(job):
    source, arch, nvcc, nvdisasm, folder = job
    stem = f"{source.stem}-{arch}"
    ptx, cubin = folder / f"{stem}.ptx", folder / f"{stem}.cubin"
    flags = ["-DFORETOKEN_HAVE_CUDA", "-DFMT_SHARED", f"-I{ROOT}", "-O3", "-DNDEBUG", "--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false",
             "-std=c++20"]
    run([nvcc, *flags, "-x", "cu", f"-arch=compute_{arch}", "-ptx", str(source), "-o", str(ptx)])
    ptxas = pathlib.Path(nvcc).resolve().parent / "ptxas"
    said = run([str(ptxas), "-v", f"-arch=sm_{arch}", str(ptx), "-o", str(cubin)])

    threads, waits = {}, set()
    entry = None
    for text in ptx.read_text().split("\n"):
        begins = re.search(r"\.entry\s+(\w+)", text)
        entry = begins.group(1) if begins else entry
        if "griddepcontrol.wait" in text:
            waits.add(entry)
        bound = re.match(r"\.maxntid\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?", text)
        if bound:
            threads[entry] = int(bound.group(1)) * int(bound.group(2) or 1) * int(bound.group(3) or 1)

    rows, name = {}, None
    for text in said.split("\n"):
        begins = re.search(r"Compiling entry function '(\w+)'", text)
        if begins:
            name = begins.group(1)
            rows[name] = {"arch": arch, "threads": threads.get(name, 1024), "shared": 0, "waits": name in waits}
            continue
        kept = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        if kept and name:
            rows[name]["stack"], rows[name]["spilled"] = int(kept.group(1)), int(kept.group(2)) + int(kept.group(3))
        used = re.search(r"Used (\d+) registers", text)
        if used and name:
            rows[name]["registers"] = int(used.group(1))
            shared = re.search(r"(\d+) bytes smem", text)
            rows[name]["shared"] = int(shared.group(1)) if shared else 0
    flights = sass(nvdisasm, cubin) if nvdisasm else {}
    for mangled, row in rows.items():
        row["loads"], row["in_flight"], row["bytes_in_flight"] = flights.get(mangled, ("-", "-", "-"))
    return rows


def measure(arguments, nvcc, nvdisasm):
    sources = [s for s in sorted(ROOT.glob("kernels/*/*.cu")) if not arguments.only or s.stem in arguments.only.split(",")]
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(source, arch, nvcc, nvdisasm, pathlib.Path(folder)) for arch in arguments.arch.split(",") for source in sources]
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            results = list(pool.map(compile_one, jobs))
    names = demangle(sorted({mangled for result in results for mangled in result}))
    for result in results:
        for mangled, row in result.items():
            rows[(short_name(names[mangled]), row["arch"])] = row
    return rows


def read_table():
    rows, version = {}, ""
    for text in TABLE.read_text().split("\n"):
        if text.startswith("#"):
            version = version or text.lstrip("# ")
        elif text and not text.startswith("kernel\t"):
            cells = dict(zip(COLUMNS, text.split("\t")))
            rows[(cells["kernel"], cells["arch"])] = {k: int(v) if v.isdigit() else v for k, v in cells.items() if k not in ("kernel", "arch")}
    return version, rows


def faults_of(key, row, known, same_compiler):
    if int(key[1]) >= DEPENDENT_LAUNCH and not row["waits"]:
        return ["does not wait for the kernels ahead of it: wait_for_kernels_ahead() is missing"]
    if known is None:
        return ["is not in the table: run scripts/kernel-table.py and look at its line"]
    found = []
    for what in ("spilled", "stack"):
        if row[what] > known[what]:
            found.append(f"{what} {row[what]} bytes, {known[what]} in the table")
    if row["shared"] > STATIC_SHARED:
        found.append(f"{row['shared']} bytes of static shared memory: no more than {STATIC_SHARED} may be")
    if row["threads"] != known["threads"]:
        found.append(f"blocks of up to {row['threads']} threads, {known['threads']} in the table")
    if row["registers"] * row["threads"] > REGISTERS:
        found.append(f"{row['registers']} registers for each of {row['threads']} threads: no multiprocessor has them")
    if same_compiler and row["registers"] > known["registers"] + SPARE_REGISTERS:
        found.append(f"{row['registers']} registers, {known['registers']} in the table")
    if same_compiler and row["in_flight"] != "-" and known["in_flight"] != "-" and row["in_flight"] < known["in_flight"]:
        found.append(f"{row['in_flight']} loads under way at once, {known['in_flight']} in the table")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--diff", action="store_true")
    parser.add_argument("--arch", default="80,90,120")
    parser.add_argument("--only")
    parser.add_argument("--nvcc")
    parser.add_argument("--nvdisasm")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    nvcc = tool("nvcc", arguments.nvcc)
    if nvcc is None:
        print("kernel-table.py: no nvcc here: skipped")
        return 77
    nvdisasm = tool("nvdisasm", arguments.nvdisasm)
    release = re.search(r"release ([\d.]+), V([\d.]+)", run([nvcc, "--version"]))
    version = f"nvcc {release.group(2)}"
    rows = measure(arguments, nvcc, nvdisasm)

    if not arguments.check and not arguments.diff:
        old = read_table()[1] if TABLE.exists() else {}
        if arguments.only:  # the instances that a kernel has now
            measured = {kernel.split("<")[0] for kernel, _ in rows}
            rows = {**{k: row for k, row in old.items() if k[0].split("<")[0] not in measured}, **rows}
        with TABLE.open("w") as out:
            out.write(f"# {version}\n# Made by scripts/kernel-table.py. shared: static, bytes; threads: most of a block; loads: of device memory in the inner loop that has most "
                      "of them,\n# in_flight: of those, under way before one is needed.\n")
            out.write("\t".join(COLUMNS) + "\n")
            for (kernel, arch), row in sorted(rows.items()):
                if row["loads"] == "-" and (kernel, arch) in old:
                    row = {**row, **{k: old[(kernel, arch)][k] for k in ("loads", "in_flight", "bytes_in_flight")}}
                out.write("\t".join([kernel, arch] + [str(row[c]) for c in COLUMNS[2:]]) + "\n")
        print(f"kernel-table.py: {len(rows)} lines in {TABLE.relative_to(ROOT)}")
        return 0

    known_version, known = read_table()
    same = known_version == version
    if arguments.diff:
        for key in sorted(rows):
            changes = [f"{c} {known[key][c]} -> {rows[key][c]}" for c in COLUMNS[2:] if key in known and known[key][c] != rows[key][c]]
            if key not in known:
                changes = ["new: " + ", ".join(f"{c} {rows[key][c]}" for c in COLUMNS[2:])]
            if changes:
                print(f"{key[0]} (sm_{key[1]}): {', '.join(changes)}")
        return 0
    bad = 0
    tabled = {arch for _, arch in known}
    for key, row in sorted(rows.items()):
        if key[1] in tabled:
            faults = faults_of(key, row, known.get(key), same)
        else:
            faults = faults_of(key, row, known.get((key[0], STAND_IN)), False)
        for fault in faults:
            bad += 1
            print(f"kernel-table.py: {key[0]} (sm_{key[1]}): {fault}")
    compared = "" if same else f"; the table is of {known_version}, this is {version}: registers and loads are not compared"
    print(f"kernel-table.py: {len(rows)} kernels, {bad} faults{compared}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
