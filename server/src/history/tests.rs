//! Steps on real clones, with packs made by git from real repositories.

mod cases;
mod hostile;
mod lab;
