/* Preloaded, lets Intel's MKL take the same instruction path on every maker's processor: these two functions of its library decide it. */
int mkl_serv_intel_cpu(void) { return 1; }
int mkl_serv_intel_cpu_true(void) { return 1; }
