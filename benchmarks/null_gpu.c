/* A CUDA device that computes nothing, in place of NVIDIA's driver, runtime and cuBLAS (`null_gpu.py`).
 *
 * Memory is reserved and never touched. A launch is counted by its kernel's name and returns at once, and so does what
 * waits. A copy to the host gives zeros, or yes if it is one byte. Inside a stream capture, launches count as captured.
 */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#undef cudaGetDeviceProperties
#undef cudaStreamGetCaptureInfo

/* Counting */

#define KERNELS 65536 /* of torch's libraries, some 30,000 */
#define COUNTED 8192

static struct { const void *function; const char *name; } kernels[KERNELS];
static struct { const char *name; long times; } counted[COUNTED];
static int num_counted, capturing;
static cudaStream_t captured_stream;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void count(const char *name) {
  pthread_mutex_lock(&lock);
  int at = 0;
  while (at < num_counted && strcmp(counted[at].name, name)) at++;
  if (at == num_counted && num_counted < COUNTED) counted[num_counted++].name = strdup(name);
  if (at < COUNTED) counted[at].times++;
  pthread_mutex_unlock(&lock);
}

/* Each launch counts twice: in all, and by its kernel. */
void null_launch(const char *kernel) {
  count(capturing ? "captured" : "launches");
  count(kernel);
}

static int place_of(const void *function) {
  int at = ((size_t)function >> 4) % KERNELS;
  while (kernels[at].function && kernels[at].function != function) at = (at + 1) % KERNELS;
  return at;
}

static void register_kernel(const void *function, const char *name) {
  int at = place_of(function);
  kernels[at].function = function, kernels[at].name = name;
}

static int launch(const void *function) {
  const char *name = kernels[place_of(function)].name;
  null_launch(name ? name : "unknown kernel");
  return 0;
}

void null_reset(void) {
  memset(counted, 0, sizeof counted);
  num_counted = 0;
}

void null_write(const char *path) {
  FILE *file = fopen(path, "w");
  for (int at = 0; at < num_counted; at++) fprintf(file, "%ld\t%s\n", counted[at].times, counted[at].name);
  fclose(file);
}

/* The device: what torch and Triton ask of an H200 */

static int attribute(int which) {
  switch (which) {
    case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 232448;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 233472;
    case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrWarpSize: case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
    case cudaDevAttrClockRate: return 1980000;
    case cudaDevAttrMemoryClockRate: return 3201000;
    case cudaDevAttrGlobalMemoryBusWidth: return 6144;
    case cudaDevAttrL2CacheSize: return 50 << 20;
    case cudaDevAttrMultiProcessorCount: return 132;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrUnifiedAddressing: case cudaDevAttrCooperativeLaunch: return 1;
    default: return 0;
  }
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *known, int device) {
  memset(known, 0, sizeof *known);
  strcpy(known->name, "null H200");
  known->major = 9;
  known->totalGlobalMem = 139ull << 30;
  known->sharedMemPerBlock = 49152, known->sharedMemPerBlockOptin = 232448, known->sharedMemPerMultiprocessor = 233472;
  known->regsPerBlock = known->regsPerMultiprocessor = 65536;
  known->warpSize = known->maxBlocksPerMultiProcessor = 32;
  known->maxThreadsPerBlock = known->maxThreadsDim[0] = known->maxThreadsDim[1] = 1024, known->maxThreadsDim[2] = 64;
  known->maxGridSize[0] = 2147483647, known->maxGridSize[1] = known->maxGridSize[2] = 65535;
  known->multiProcessorCount = 132, known->maxThreadsPerMultiProcessor = 2048, known->l2CacheSize = 50 << 20;
  known->textureAlignment = 512;
  known->unifiedAddressing = known->cooperativeLaunch = known->concurrentKernels = known->canMapHostMemory = 1;
  return 0;
}

cudaError_t cudaGetDeviceCount(int *found) { return *found = 1, 0; }
cudaError_t cudaGetDevice(int *found) { return *found = 0; }
cudaError_t cudaDriverGetVersion(int *found) { return *found = 13000, 0; }
cudaError_t cudaRuntimeGetVersion(int *found) { return *found = 13000, 0; }
cudaError_t cudaDeviceGetAttribute(int *found, enum cudaDeviceAttr which, int device) { return *found = attribute(which), 0; }
cudaError_t cudaDeviceCanAccessPeer(int *found, int one, int other) { return *found = 0; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most) {
  if (least) *least = 0;
  if (most) *most = -5;
  return 0;
}
cudaError_t cudaMemGetInfo(size_t *free, size_t *all) { return *free = 138ull << 30, *all = 139ull << 30, 0; }
const char *cudaGetErrorString(cudaError_t error) { return "an error of a device that computes nothing"; }
const char *cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }

/* Memory */

cudaError_t cudaMalloc(void **made, size_t size) {
  count("cudaMalloc");
  *made = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return 0;
}
cudaError_t cudaHostAlloc(void **made, size_t size, unsigned flags) {
  count("cudaHostAlloc");
  *made = aligned_alloc(4096, (size + 4095) & ~4095ul);
  return 0;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *known, const void *pointer) {
  memset(known, 0, sizeof *known);
  known->type = cudaMemoryTypeDevice, known->devicePointer = (void *)pointer;
  return 0;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
  count(kind == cudaMemcpyDeviceToHost ? "copies to the host" : kind == cudaMemcpyHostToDevice ? "copies to the device" : "copies");
  if (kind == cudaMemcpyDeviceToHost) memset(to, size == 1, size);
  return 0;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  count("waits");
  return cudaMemcpyAsync(to, from, size, kind, NULL);
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) { return null_launch("memset"), 0; }
cudaError_t cudaGetSymbolAddress(void **found, const void *symbol) { return *found = calloc(1, 4096), 0; }

/* Streams, events, captures */

cudaError_t cudaStreamCreate(cudaStream_t *made) { return *made = malloc(16), 0; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *made, unsigned flags) { return cudaStreamCreate(made); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *made, unsigned flags, int priority) { return cudaStreamCreate(made); }
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *found) { return *found = 0; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return count("waits"), 0; }
cudaError_t cudaDeviceSynchronize(void) { return count("waits"), 0; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return count("waits"), 0; }
cudaError_t cudaEventCreate(cudaEvent_t *made) { return *made = malloc(16), 0; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *made, unsigned flags) { return cudaEventCreate(made); }
cudaError_t cudaEventElapsedTime(float *found, cudaEvent_t start, cudaEvent_t end) { return *found = 1, 0; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  capturing = 1, captured_stream = stream;
  return 0;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *made) {
  capturing = 0, *made = malloc(16);
  return 0;
}
static enum cudaStreamCaptureStatus status_of(cudaStream_t stream) {
  return capturing && stream == captured_stream ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *found) { return *found = status_of(stream), 0; }
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *found, unsigned long long *number,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *count) {
  *found = status_of(stream);
  if (number) *number = 1;
  if (graph) *graph = NULL;
  if (count) *count = 0;
  return 0;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) { return *made = malloc(16), 0; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *found) { return *found = 1, 0; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) { return null_launch("graph"), 0; }

/* Kernels of torch */

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle;
  return &handle;
}
void __cudaRegisterFunction(void **handle, const char *function, char *there, const char *name, int limit, void *thread,
                            void *block, void *block_size, void *grid_size, int *warp) {
  register_kernel(function, name);
}
cudaError_t __cudaGetKernel(cudaKernel_t *found, const void *function) { return *found = (cudaKernel_t)function, 0; }
static __thread struct { dim3 grid, block; size_t shared; void *stream; } pushed[8];
static __thread int depth;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
  pushed[depth].grid = grid, pushed[depth].block = block, pushed[depth].shared = shared, pushed[depth++].stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  depth--, *grid = pushed[depth].grid, *block = pushed[depth].block, *shared = pushed[depth].shared;
  *(void **)stream = pushed[depth].stream;
  return 0;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **given, size_t shared, cudaStream_t stream) {
  return launch(kernel);
}
cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **given, size_t shared, cudaStream_t stream) {
  return launch(function);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **given) { return launch(function); }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *known, const void *function) {
  memset(known, 0, sizeof *known);
  known->maxThreadsPerBlock = 1024, known->numRegs = 32, known->binaryVersion = known->ptxVersion = 90;
  return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *found, const void *function, int block, size_t shared, unsigned flags) {
  return *found = 2, 0;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
  *found = dlsym(RTLD_DEFAULT, name);
  if (result) *result = *found ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return *found ? cudaSuccess : cudaErrorSymbolNotFound;
}

/* Kernels of Triton */

CUresult cuDeviceGet(CUdevice *found, int number) { return *found = 0; }
CUresult cuDeviceGetCount(int *found) { return *found = 1, 0; }
CUresult cuDriverGetVersion(int *found) { return *found = 13000, 0; }
CUresult cuDeviceGetAttribute(int *found, CUdevice_attribute which, CUdevice device) { return *found = attribute(which), 0; }
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) { return *flags = 0, *active = 1, 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *found, CUdevice device) { return *found = (CUcontext)1, 0; }
CUresult cuCtxGetCurrent(CUcontext *found) { return *found = (CUcontext)1, 0; }
CUresult cuCtxGetDevice(CUdevice *found) { return *found = 0; }
CUresult cuModuleLoadData(CUmodule *made, const void *image) { return *made = malloc(16), 0; }
CUresult cuModuleGetFunction(CUfunction *found, CUmodule module, const char *name) {
  *found = malloc(16);
  register_kernel(*found, strdup(name));
  return 0;
}
CUresult cuFuncGetAttribute(int *found, CUfunction_attribute which, CUfunction function) {
  *found = which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return 0;
}
CUresult cuPointerGetAttribute(void *found, CUpointer_attribute which, CUdeviceptr pointer) { return *(CUdeviceptr *)found = pointer, 0; }
CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void **given, void **more) {
  return launch(function);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **given, void **more) { return launch(function); }
CUresult cuOccupancyMaxActiveClusters(int *found, CUfunction function, const CUlaunchConfig *config) { return *found = 1, 0; }

/* cuBLAS, whose headers are not needed: handles and results are memory of their size or more */

static int math_mode;
int cublasCreate_v2(void **made) { return *made = malloc(64), 0; }
int cublasGetMathMode(void *handle, int *found) { return *found = math_mode, 0; }
int cublasSetMathMode(void *handle, int mode) { return math_mode = mode, 0; }
int cublasGetPointerMode_v2(void *handle, int *found) { return *found = 0; }
int cublasLtCreate(void **made) { return *made = malloc(64), 0; }
int cublasLtMatmulDescCreate(void **made, int compute, int scale) { return *made = malloc(256), 0; }
int cublasLtMatrixLayoutCreate(void **made, int type, size_t rows, size_t columns, long leading) { return *made = malloc(256), 0; }
int cublasLtMatmulPreferenceCreate(void **made) { return *made = malloc(256), 0; }
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                   int most, void *results, int *found) {
  memset(results, 0, 96); /* sizeof(cublasLtMatmulHeuristicResult_t) */
  return *found = 1, 0;
}
