//! The query language of `POST /devices/query`, of jobs' conditions and of configurations.
//!
//! [`parse`] makes a [`tree`] of the text, [`run`] applies it to documents, [`page`] cuts the rows into
//! pages. All of it is pure; [`collections`] brings the documents, a few at a time.

mod collections;
mod page;
mod parse;
mod run;
mod tokens;
mod tree;

pub(crate) use collections::in_pieces;
pub(crate) use page::Page;
pub(crate) use parse::{condition, parse};
pub(crate) use run::{Document, find, holds, rows};
pub(crate) use tree::{Expr, Query};
