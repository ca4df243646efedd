# SPDX-License-Identifier: GPL-2.0-only
"""The lab's TCG helper, preloaded into programs that are like a QEMU, and into others."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.capabilities import ROOT

SOURCE = ROOT / "guest" / "lab-tcg" / "tcg_dirty.c"
OLD = "qemu_mutex_iothread_locked"  # until QEMU 8.2
NEW = "bql_locked"  # since 9.0
ALL = ("qemu_init", "qemu_get_cpu", "tlb_flush", "run_on_cpu", "async_run_on_cpu")
ALL += ("qemu_in_vcpu_thread",)
# A QEMU with one vCPU, whose work is done at once. Its thread of the migration waits for the vCPU
# with the big lock first; a checkpoint then only kicks the vCPU, which was quick.
QUICK_VCPU = r"""
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

static int cpu, flushes;
static bool locked;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t kicked = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;

int qemu_init(void) { return 0; }
void *qemu_get_cpu(int index) { return index ? NULL : &cpu; }
void tlb_flush(void *of) { flushes += of == &cpu; }
void run_on_cpu(void *of, void (*run)(void *, void *), void *data) { run(of, data); }
void async_run_on_cpu(void *of, void (*run)(void *, void *), void *data)
{
	pthread_cond_broadcast(&kicked);
	run(of, data);
}
bool bql_locked(void) { return locked; }
bool qemu_in_vcpu_thread(void) { return false; }

static void *migrate(void *unused)
{
	(void)unused;
	pthread_cond_broadcast(&kicked);
	printf("%d ", flushes);		/* any thread may do that */
	pthread_mutex_lock(&lock);
	locked = true;
	pthread_cond_broadcast(&kicked);
	pthread_cond_wait(&done, &lock);
	locked = false;
	pthread_mutex_unlock(&lock);
	printf("%d ", flushes);
	pthread_cond_broadcast(&kicked);
	printf("%d\n", flushes);
	return NULL;
}

int main(void)
{
	pthread_t thread;

	return pthread_create(&thread, NULL, migrate, NULL) || pthread_join(thread, NULL);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make guest` builds it."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    built = tmp_path_factory.mktemp("helper") / "libtcgdirty.so"
    words = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(built)]
    subprocess.run([*words, str(SOURCE), "-ldl"], check=True, timeout=60)
    return built


def _run(library: Path, directory: Path, *symbols: str) -> subprocess.CompletedProcess[str]:
    """A program that exports these, with the helper."""
    text = "".join(f"int {name}(void) {{ return 0; }}\n" for name in symbols)
    return _run_source(
        library,
        directory,
        f'#include <stdio.h>\n{text}int main(void) {{ return puts("ran") < 0; }}\n',
    )


def _run_source(library: Path, directory: Path, text: str) -> subprocess.CompletedProcess[str]:
    source, program = directory / "program.c", directory / "program"
    source.write_text(text)
    subprocess.run(["gcc", "-rdynamic", "-o", program, source], check=True, timeout=60)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    return subprocess.run(
        [program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("lock", [OLD, NEW])
def test_a_qemu_that_has_all_it_needs_runs(library: Path, tmp_path: Path, lock: str) -> None:
    done = _run(library, tmp_path, *ALL, lock)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


@pytest.mark.parametrize("lacking", [*ALL[1:], "bql_locked"])
def test_a_qemu_that_lacks_something_ends_and_says_what(
    library: Path, tmp_path: Path, lacking: str
) -> None:
    done = _run(library, tmp_path, *(name for name in (*ALL, NEW) if name != lacking))
    assert done.returncode != 0
    assert done.stdout == ""
    assert f"this QEMU has no {lacking}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_any_other_program_is_let_alone(library: Path, tmp_path: Path) -> None:
    done = _run(library, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


def test_a_checkpoint_that_need_not_wait_for_the_vcpu_flushes_its_tlb_all_the_same(
    library: Path, tmp_path: Path
) -> None:
    done = _run_source(library, tmp_path, QUICK_VCPU)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1 2\n", "")
