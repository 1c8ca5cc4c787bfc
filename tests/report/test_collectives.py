import subprocess
import sys

from jaxcls.report.collectives import collectives

PROGRAM = """
  %all-reduce.5 = (f32[2217]{0}, /*index=1*/f32[7,7,3,64]{3,2,1,0}) all-reduce(%a, %b), channel_id=1, to_apply=%sum
  %x = f32[8]{0} add(%all-reduce.5, %all-reduce.5)
  %start = bf16[4,2]{1,0} all-reduce-start(%x), replica_groups={{0,1}}
  %gathered = s32[] all-gather(%y), dimensions={0}
"""


def test_collectives_of_a_program():
    assert collectives(PROGRAM) == [("all-reduce", 4 * (2217 + 7 * 7 * 3 * 64)), ("all-reduce", 16), ("all-gather", 4)]


def test_a_step_exchanges_the_same_on_one_to_eight_devices():
    program = "import runpy, sys, tests.tiny_main; sys.argv[1:] = ['--model', 'tiny', '--devices', '1', '8']; "
    program += "runpy.run_path('scripts/scaling.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [
        line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ") and "all-reduce," not in line
    ]
    one, eight = [[cell.strip() for cell in row] for row in rows[1:3]]
    assert one == ["1", "none", "0", "yes"]
    assert eight[:2] == ["8", "all-reduce"] and eight[3] == "yes" and int(eight[2].replace(",", "")) > 4 * 20_000
