"""`python -m prectr_torchrec.cli`."""

from prectr_torchrec.cli.main import main

main()
