//! slot_writer
