#include "kernels/formats/grids.h"

#include "kernels/formats/grid_points.h"

namespace foretoken {

constinit const Grid<uint64_t, 256> kIq2XxsGrid = grid_of<uint64_t, 256>(kIq2XxsPoints, kIq2Levels);
constinit const Grid<uint64_t, 512> kIq2XsGrid = grid_of<uint64_t, 512>(kIq2XsPoints, kIq2Levels);
constinit const Grid<uint64_t, 1024> kIq2SGrid = grid_of<uint64_t, 1024>(kIq2SPoints, kIq2Levels);
constinit const Grid<uint64_t, 2048> kIq1Grid = grid_of<uint64_t, 2048>(kIq1Points, kIq1Levels);
constinit const Grid<uint32_t, 256> kIq3XxsGrid = grid_of<uint32_t, 256>(kIq3XxsPoints, kIq3XxsLevels);
constinit const Grid<uint32_t, 512> kIq3SGrid = grid_of<uint32_t, 512>(kIq3SPoints, kIq3SLevels);

}  // namespace foretoken
