"""What a small general model can know: well-known facts, and wordings of their relations to ask for them."""

from pathlib import Path

HERE = Path(__file__).parent
