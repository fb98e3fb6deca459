#include "kernels/cuda/fetch_rows_cuda.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_language.h"
#include "kernels/formats/grid_levels.h"
#include "kernels/formats/interleave_layout.h"

// A block of threads brings sixteen rows of some column blocks over the bus to shared memory, by loads as wide as they
// lie, and writes them plane by plane from there.

namespace foretoken::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kRows = kInterleave;
constexpr int kSharedBytes = 32 << 10;

/// What a matrix's file blocks are, for loops that do not know its type.
struct Blocks {
  int bytes;
  int chunk;      // column blocks at a time: a multiple of four, so that the pieces of every plane begin at a word
  int64_t count;  // column blocks of a row
  OddBytes odd;
  int num_planes;
  Plane planes[4];
  int64_t plane_begins[4];  // in a row on the device
};

Blocks blocks_of(WeightType type, int64_t num_cols) {
  const WeightTypeInfo& info = weight_type_info(type);
  const int chunk = kSharedBytes / (kRows * (info.block_bytes + 1)) / 4 * 4;
  FT_CHECK(chunk >= 4 && kRows * ((chunk * info.block_bytes + 15) / 16 * 16) <= kSharedBytes);
  const Planes planes = planes_of(type);
  Blocks blocks{info.block_bytes, chunk, num_cols / info.block_size, odd_bytes(type), planes.count, {}, {}};
  for (int p = 0; p < planes.count; ++p) {
    blocks.planes[p] = planes.planes[p];
    blocks.plane_begins[p] = plane_offset(type, p, blocks.count * info.num_parts());
  }
  return blocks;
}

struct Arguments {
  FetchDesc desc;
  Blocks blocks[3];
};

// A piece as it lies in shared memory.
struct Piece {
  const uint8_t* bytes;
  bool is_interleaved;
  int block_bytes;
  int row_stride;  // where rows lie apart
  OddBytes odd;

  // Byte `at` of block `block` of row `row`, counted as in the file.
  __device__ __forceinline__ uint32_t byte(int row, int block, int at) const {
    if (!is_interleaved) return bytes[row * row_stride + block * block_bytes + at];
    const uint8_t* group = bytes + block * block_bytes * kRows;
    if (at >= odd.begin && at < odd.begin + odd.count) return group[row * odd.count + at - odd.begin];
    const int word = (at < odd.begin ? at : at - odd.count) / 4;
    return group[kRows * odd.count + word * 4 * kRows + 4 * row + (at < odd.begin ? at : at - odd.count) % 4];
  }
};

// Byte `at` of plane `p` of one block; see cuda_matrix.h for the two types with an order of their own.
__device__ __forceinline__ uint32_t plane_byte(WeightType type, const Piece& piece, int p, Plane plane, int row,
                                               int block, int at) {
  if (type == WeightType::kIQ4_XS && p == 0) {
    const auto value = [&](int i) {
      const uint32_t both = piece.byte(row, block, plane.file_offset + i / 32 * 16 + i % 16);
      return both >> (i % 32 < 16 ? 0 : 4) & 15u;
    };
    const int first = 64 * (at / 32) + at % 32;
    return value(first) | value(first + 32) << 4;
  }
  if (type == WeightType::kQ8_0 && p == 0) at = at % 8 / 4 * 16 + at / 8 * 4 + at % 4;
  return piece.byte(row, block, plane.file_offset + at);
}

// Bytes [0, count) by all threads. Both ends are aligned to `kWord`, or to what it is cut to.
template <class Word>
__device__ __forceinline__ void copy_words(const std::byte* from, uint8_t* to, int count) {
  // All of a thread's loads are asked for before one is stored: a way over the bus takes about a microsecond.
  constexpr int kWords = 4;
  const int words = count / static_cast<int>(sizeof(Word)), thread = static_cast<int>(threadIdx.x);
  const auto* source = reinterpret_cast<const Word*>(from);
  auto* target = reinterpret_cast<Word*>(to);
  for (int first = thread; first < words; first += kWords * kThreads) {
    Word held[kWords];
    FT_UNROLL
    for (int i = 0; i < kWords; ++i) {
      if (first + i * kThreads < words) held[i] = source[first + i * kThreads];
    }
    FT_UNROLL
    for (int i = 0; i < kWords; ++i) {
      if (first + i * kThreads < words) target[first + i * kThreads] = held[i];
    }
  }
}
__device__ __forceinline__ void copy_bytes(const std::byte* from, uint8_t* to, int count) {
  const auto alignment = reinterpret_cast<uintptr_t>(from) | static_cast<uintptr_t>(count);
  if (alignment % 16 == 0) {
    copy_words<uint4>(from, to, count);
  } else if (alignment % 4 == 0) {
    copy_words<uint32_t>(from, to, count);
  } else {
    copy_words<uint8_t>(from, to, count);
  }
}

// blockIdx.x: sixteen rows and column blocks of an expert's matrix; y: the matrix; z: which expert of the list.
__global__ void __launch_bounds__(kThreads) cuda_fetch_rows(Arguments a) {
  FT_SHARED(uint4, memory, kSharedBytes / 16);
  start_next_kernel();
  wait_for_kernels_ahead();
  if (static_cast<int>(blockIdx.z) >= a.desc.list->count) return;
  const FetchedMatrix& matrix = a.desc.matrices[blockIdx.y];
  const Blocks& blocks = a.blocks[blockIdx.y];
  const int64_t num_blocks = blocks.count;
  const int64_t chunks = (num_blocks + blocks.chunk - 1) / blocks.chunk;
  const int64_t first_row = blockIdx.x / chunks * kRows, first_block = blockIdx.x % chunks * blocks.chunk;
  if (first_row >= matrix.stride_rows) return;
  const int num_rows =
      static_cast<int>(matrix.stride_rows - first_row < kRows ? matrix.stride_rows - first_row : kRows);
  const int count = static_cast<int>(num_blocks - first_block < blocks.chunk ? num_blocks - first_block : blocks.chunk);

  auto* bytes = reinterpret_cast<uint8_t*>(memory);
  const std::byte* from =
      matrix.from + (a.desc.list->experts[blockIdx.z] * matrix.stride_rows + first_row) * matrix.row_bytes;
  Piece piece{bytes, matrix.is_interleaved, blocks.bytes, (count * blocks.bytes + 15) / 16 * 16, blocks.odd};
  if (matrix.is_interleaved) {
    copy_bytes(from + first_block * blocks.bytes * kRows, bytes, count * blocks.bytes * kRows);
  } else {
    for (int r = 0; r < num_rows; ++r) {
      copy_bytes(from + r * matrix.row_bytes + first_block * blocks.bytes, bytes + r * piece.row_stride,
                 count * blocks.bytes);
    }
  }
  __syncthreads();

  const DeviceMatrix& to = matrix.to;
  std::byte* rows = const_cast<std::byte*>(to.data) +
                    (a.desc.list->places[blockIdx.z] * matrix.stride_rows + first_row) * to.row_bytes;
  for (int p = 0; p < blocks.num_planes; ++p) {
    const Plane plane = blocks.planes[p];
    const int used = count * plane.bytes;
    // The last piece of a row fills the gap behind the plane.
    const int words = (first_block + count == num_blocks ? (used + 15) / 16 * 16 : used) / 4;
    std::byte* begin = rows + blocks.plane_begins[p] + first_block * plane.bytes;
    for (int i = static_cast<int>(threadIdx.x); i < num_rows * words; i += kThreads) {
      const int row = i / words, word = i % words;
      uint32_t value = 0;
      for (int k = 0; k < 4 && 4 * word + k < used; ++k) {
        const int at = 4 * word + k;
        value |= plane_byte(to.type, piece, p, plane, row, at / plane.bytes, at % plane.bytes) << (8 * k);
      }
      // A bucket's kernel finds the expert's place in the list of buckets.
      store_weights(reinterpret_cast<uint32_t*>(begin + row * to.row_bytes + 4 * word), value);
    }
  }
}

}  // namespace

bool can_fetch(const MatrixView& from, int64_t stride_rows) {
  if (from.layout == Layout::kRows) return true;
  return !has_levels(from.type) && stride_rows % kInterleave == 0 && reinterpret_cast<uintptr_t>(from.data) % 16 == 0;
}

void launch(const FetchDesc& desc, const Stream& stream) {
  FT_CHECK(desc.num_matrices >= 1 && desc.num_matrices <= 3 && desc.most >= 1 && desc.most <= kMostFetched);
  Arguments arguments{desc, {}};
  int64_t most = 1;
  for (int i = 0; i < desc.num_matrices; ++i) {
    const FetchedMatrix& matrix = desc.matrices[i];
    Blocks& blocks = arguments.blocks[i];
    blocks = blocks_of(matrix.to.type, matrix.to.num_cols);
    const int64_t chunks = (blocks.count + blocks.chunk - 1) / blocks.chunk;
    most = std::max(most, (matrix.stride_rows + kRows - 1) / kRows * chunks);
  }
  launch(stream,
         {{static_cast<unsigned>(most), static_cast<unsigned>(desc.num_matrices), static_cast<unsigned>(desc.most)},
          {kThreads}},
         "cuda_fetch_rows", cuda_fetch_rows, arguments);
}

}  // namespace foretoken::cuda
