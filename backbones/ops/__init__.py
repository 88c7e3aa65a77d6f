"""The kernels: one public function each, a readable reference beside every fast path."""
