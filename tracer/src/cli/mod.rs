//! The command line: what was typed ([`args`]), and what it means ([`options`], [`targets`]).

pub mod args;
pub mod options;
pub mod targets;
