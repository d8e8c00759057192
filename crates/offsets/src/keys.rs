//! Every key of the store. Retired prefixes stay reserved: none yet.

/// `t` source: where the tail stands ([`TailPosition`](crate::TailPosition)).
pub fn tail(source: &str) -> Vec<u8> {
    [b"t".as_slice(), source.as_bytes()].concat()
}

/// `s` source 0 xid n: the n-th spilled piece of a transaction in progress.
pub fn spill(source: &str, xid: u32, n: u32) -> Vec<u8> {
    [spill_of(source).as_slice(), &xid.to_be_bytes(), &n.to_be_bytes()].concat()
}

/// What all spilled pieces of a source begin with. A source's name holds no zero byte.
pub fn spill_of(source: &str) -> Vec<u8> {
    [b"s".as_slice(), source.as_bytes(), b"\0"].concat()
}
