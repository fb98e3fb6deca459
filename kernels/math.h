#pragma once
// placeholder: written by the float kernels
