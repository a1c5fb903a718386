//! Peer on gitoxide:
//!
//!     gix-peer index PACK FOLDER     writes pack and .idx
//!     gix-peer read REPOSITORY IDS   reads the objects whose hex ids a file names, and throws them away
use gix_object::Find;
use std::{fs::File, io::BufReader, path::Path, sync::atomic::AtomicBool};

type Done = Result<(), Box<dyn std::error::Error>>;

fn index(pack: &str, folder: &str) -> Done {
    let mut pack = BufReader::with_capacity(1 << 16, File::open(pack)?);
    gix_pack::Bundle::write_to_directory(
        &mut pack,
        Some(Path::new(folder)),
        &mut gix_utils::progress::Discard,
        &AtomicBool::new(false),
        None::<gix_object::find::Never>,
        gix_hash::Kind::Sha1,
        Default::default(),
    )?;
    Ok(())
}

fn read(repository: &str, names: &str) -> Done {
    let mut store = gix_odb::at(Path::new(repository).join("objects"), gix_hash::Kind::Sha1)?;
    // As much as git's own cache of delta bases holds.
    store.set_pack_cache(|| Box::new(gix_pack::cache::lru::MemoryCappedHashmap::new(96 << 20)));
    let mut buffer = Vec::new();
    let mut size = 0;
    for name in std::fs::read_to_string(names)?.lines() {
        let id = gix_hash::ObjectId::from_hex(name.as_bytes())?;
        size += store.try_find(&id, &mut buffer)?.ok_or("no such object")?.data.len();
    }
    println!("{size}");
    Ok(())
}

fn main() -> Done {
    let words: Vec<String> = std::env::args().collect();
    match words[1].as_str() {
        "read" => read(&words[2], &words[3]),
        _ => index(&words[2], &words[3]),
    }
}
