// Peer on go-git:
//
//	gogit-peer index PACK FOLDER     writes pack and .idx, as its clone does
//	gogit-peer read REPOSITORY IDS   reads the objects whose hex ids a file names, and throws them away
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

func index(pack, folder string) error {
	file, err := os.Open(pack)
	if err != nil {
		return err
	}
	defer file.Close()
	storage := filesystem.NewStorage(osfs.New(folder), cache.NewObjectLRUDefault())
	return packfile.UpdateObjectStorage(storage, file)
}

func read(repository, names string) error {
	file, err := os.Open(names)
	if err != nil {
		return err
	}
	defer file.Close()
	root, err := filepath.Abs(repository)
	if err != nil {
		return err
	}
	storage := filesystem.NewStorage(osfs.New(root), cache.NewObjectLRUDefault())
	var size int64
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		object, err := storage.EncodedObject(plumbing.AnyObject, plumbing.NewHash(lines.Text()))
		if err != nil {
			return err
		}
		reader, err := object.Reader()
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, reader)
		if err != nil {
			return err
		}
		size += n
		if err := reader.Close(); err != nil {
			return err
		}
	}
	fmt.Println(size)
	return lines.Err()
}

func main() {
	work := map[string]func(string, string) error{"index": index, "read": read}[os.Args[1]]
	if err := work(os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
