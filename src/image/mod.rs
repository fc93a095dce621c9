//! THE FORMAT of images, pure over `Read` and `Write`: manifest, chunk index, signatures, build.
//! Described for implementers in `docs/reference/image-format.md`.
