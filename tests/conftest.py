import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests/fixtures.py, from every folder of tests

# A command that a shell started in the background ignores SIGINT, under nohup SIGHUP too, and so does all that it
# starts: but tests send them
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
