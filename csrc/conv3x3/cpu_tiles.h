// B^T d B of one tile, some channels at a time; included within a namespace.

// The 4x4 pixels that a tile reads; those outside are `zeros`.
template <class T, class Params>
FASTDIFF_INLINE void patch(const Params& p, std::int64_t tile, const T* zeros, const T* (&at)[16]) {
  const TilePlace place = tile_place(p, tile);
  const T* sample = static_cast<const T*>(p.x.data) + place.sample * p.x.sample;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const std::int64_t y = place.y + i - 1, x = place.x + j - 1;
      const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
      const int halved = p.upsample;
      at[4 * i + j] = inside ? sample + (y >> halved) * p.x.row + (x >> halved) * p.x.pixel : zeros;
    }
  }
}

FASTDIFF_INLINE void transform_in(Floats (&d)[16], int first, int step) {
  const Floats a = d[first], b = d[first + step], c = d[first + 2 * step], e = d[first + 3 * step];
  d[first] = a - c;
  d[first + step] = b + c;
  d[first + 2 * step] = c - b;
  d[first + 3 * step] = b - e;
}

template <class T>
FASTDIFF_INLINE void transform_tile(const T* const (&at)[16], std::int64_t c, int lanes, float* v,
                                    std::int64_t position) {
  Floats d[16];
  for (int k = 0; k < 16; ++k) d[k] = load(at[k] + c, lanes);
  for (int row = 0; row < 4; ++row) transform_in(d, 4 * row, 1);
  for (int column = 0; column < 4; ++column) transform_in(d, column, 4);
  for (int k = 0; k < 16; ++k) store(v + k * position, d[k]);
}
