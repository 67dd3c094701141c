"""Out of the door: ONNX, the hub, the model card, timings."""
