// Index a pack by go-git: gogit-peer index PACK FOLDER. It writes pack and .idx, as its clone does.
package main

import (
	"fmt"
	"os"

	"github.com/go-git/go-billy/v5/osfs"
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

func main() {
	if err := index(os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
