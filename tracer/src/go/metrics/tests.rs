//! Made samples.
