// A stand-in for the tests of the kernels.
int main() { return 0; }
