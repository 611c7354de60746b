"""The runtimes: torch, torch.compile, ONNX Runtime, OpenVINO, in the precision that is asked for."""
